"""Cosine scores against scikit-learn, what embeddings are refused, and the files an evaluation leaves."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics.pairwise import cosine_similarity

import wespeaker
from wespeaker.data.trials import Trials, read_scores, read_trials, write_kaldi_trials
from wespeaker.errors import InputError
from wespeaker.eval import embeddings as embeddings_module
from wespeaker.eval import scoring
from wespeaker.eval.embeddings import load_embeddings, load_mean_vec, write_embeddings
from wespeaker.eval.metrics import error_tradeoff, tar_at_far
from wespeaker.eval.results import error_rates
from wespeaker.eval.scoring import cosine_scores, evaluate_embeddings, evaluate_scores

UTTS = [f"id{i // 4}/v{i % 4}/00001.wav" for i in range(40)]


def _embeddings(dim: int = 16) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (np.repeat(rng.standard_normal((10, dim)), 4, axis=0) + rng.standard_normal((40, dim)) + 1).astype(
        np.float32
    )


def _trials(num: int = 3000) -> Trials:
    rng = np.random.default_rng(1)
    enroll, test = rng.integers(0, 40, (2, num)).astype(np.int32)
    return Trials(UTTS, enroll, test, enroll // 4 == test // 4)


def _save(folder: Path, vectors: dict[str, NDArray[np.float32]]) -> Path:
    kaldiio.save_ark(str(folder / "xvector.ark"), vectors, scp=str(folder / "xvector.scp"))
    return folder / "xvector.scp"


@pytest.fixture
def scp(tmp_path: Path) -> Path:
    return _save(tmp_path, dict(zip(UTTS, _embeddings(), strict=True)))


@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_the_cosines_of_scikit_learn(with_mean: bool, dtype: type) -> None:
    embeddings, trials = _embeddings().astype(dtype), _trials()
    mean = embeddings.mean(axis=0) if with_mean else None
    centred = embeddings.astype(np.float64) - (0 if mean is None else mean.astype(np.float64))
    expected = cosine_similarity(centred)[trials.enroll, trials.test]
    found = cosine_scores(trials, UTTS, embeddings, mean_vec=mean)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert np.abs(found).max() <= 1


def test_a_score_depends_neither_on_its_place_nor_on_the_block_nor_on_the_order_of_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings, trials = _embeddings(), _trials()
    expected = cosine_scores(trials, UTTS, embeddings)
    for module in (scoring, embeddings_module):
        monkeypatch.setattr(module, "BLOCK", 7)
    order = np.random.default_rng(2).permutation(40)
    shuffled = cosine_scores(trials, [UTTS[i] for i in order], embeddings[order])
    np.testing.assert_array_equal(shuffled, expected)


def test_a_mean_makes_scores_indifferent_to_a_shift_of_all_embeddings() -> None:
    # Powers of two and small integers: exact in float32 and float64.
    embeddings, trials = np.round(4 * _embeddings()), _trials()
    shifted = cosine_scores(trials, UTTS, embeddings + 64, mean_vec=np.full(16, 64.0))
    np.testing.assert_array_equal(shifted, cosine_scores(trials, UTTS, embeddings))


def test_memory_does_not_grow_with_the_list() -> None:
    embeddings = np.random.default_rng(0).standard_normal((40, 256), dtype=np.float32)
    peaks = []
    for num in (10_000, 100_000):
        trials = _trials(num)
        tracemalloc.start()
        cosine_scores(trials, UTTS, embeddings)
        peaks.append(tracemalloc.get_traced_memory()[1] - 8 * num)  # the scores themselves
        tracemalloc.stop()
    assert max(peaks) < 20e6 < 100_000 * 256 * 4
    assert peaks[1] < 1.2 * peaks[0]


def test_missing_embeddings_are_listed() -> None:
    with pytest.raises(InputError, match=r"30 of 40 utterances .* no embedding: id2/v2/00001.wav, .* and 20 more"):
        cosine_scores(_trials(), UTTS[:10], _embeddings()[:10])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_embeddings_without_direction_are_named(value: float) -> None:
    embeddings = _embeddings()
    embeddings[[3, 5]] = value
    with pytest.raises(InputError, match=r"2 of 40 embeddings cannot be scored.*: id0/v3/00001.wav, id1/v1/00001.wav$"):
        cosine_scores(_trials(), UTTS, embeddings)


def test_an_embedding_equal_to_the_mean_is_named() -> None:
    with pytest.raises(InputError, match=r"norm 0 after subtraction of the mean: id0/v0/00001.wav"):
        cosine_scores(_trials(), UTTS, _embeddings(), mean_vec=_embeddings()[0])


def test_a_bad_embedding_that_no_trial_uses_does_no_harm() -> None:
    scores = cosine_scores(_trials(), [*UTTS, "unused"], np.vstack([_embeddings(), np.zeros(16)]))
    np.testing.assert_array_equal(scores, cosine_scores(_trials(), UTTS, _embeddings()))


def test_a_mean_of_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(8,\), the embeddings have 16 numbers"):
        cosine_scores(_trials(), UTTS, _embeddings(), mean_vec=np.zeros(8))


def test_embeddings_of_kaldiio_are_read(scp: Path) -> None:
    utts, embeddings = load_embeddings(scp)
    assert utts == UTTS
    np.testing.assert_array_equal(embeddings, _embeddings())


def test_doubles_beyond_float32_are_infinite_and_named_when_scored(tmp_path: Path) -> None:
    vectors = _embeddings().astype(np.float64)
    vectors[3, 0] = 1e300
    kaldiio.save_ark(str(tmp_path / "x.ark"), dict(zip(UTTS, vectors, strict=True)), scp=str(tmp_path / "x.scp"))
    utts, embeddings = load_embeddings(tmp_path / "x.scp")
    assert embeddings[3, 0] == np.inf
    with pytest.raises(InputError, match=r"1 of 40 embeddings cannot be scored.*: id0/v3/00001.wav$"):
        cosine_scores(_trials(), utts, embeddings)


def test_embeddings_spread_over_several_arks_are_read(tmp_path: Path) -> None:
    lines = []
    for part in range(4):
        vectors = dict(zip(UTTS[part::4], _embeddings()[part::4], strict=True))
        name = tmp_path / f"xvector_{part:03d}"
        kaldiio.save_ark(f"{name}.ark", vectors, scp=f"{name}.scp")
        lines += Path(f"{name}.scp").read_text().splitlines()
    (tmp_path / "xvector.scp").write_text("\n".join(sorted(lines)))
    utts, embeddings = load_embeddings(tmp_path / "xvector.scp")
    np.testing.assert_array_equal(embeddings, _embeddings()[[UTTS.index(utt) for utt in utts]])


def test_arks_that_moved_with_their_scp_are_found_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The paths in an scp of WeSpeaker's are absolute, of the machine that extracted."""
    caplog.set_level(logging.INFO)
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    for part in range(2):
        vectors = dict(zip(UTTS[part::2], _embeddings()[part::2], strict=True))
        kaldiio.save_ark(str(there / f"xvector_{part:03d}.ark"), vectors, scp=str(there / f"{part}.scp"))
    (there / "xvector.scp").write_text("".join((there / f"{part}.scp").read_text() for part in range(2)))
    load_embeddings(there / "xvector.scp")
    assert not caplog.records
    there.rename(here)
    utts, embeddings = load_embeddings(here / "xvector.scp")
    np.testing.assert_array_equal(embeddings, _embeddings()[[UTTS.index(utt) for utt in utts]])
    assert [record.message.split(";")[1] for record in caplog.records] == [
        f" {here}/xvector_{part:03d}.ark is taken" for part in range(2)
    ]
    (here / "xvector_001.ark").unlink()
    with pytest.raises(InputError, match=r"xvector\.scp:\d+: cannot read .*/there/xvector_001\.ark"):
        load_embeddings(here / "xvector.scp")


@pytest.mark.parametrize("entry", ["touch {ran} |", "| touch {ran}", "touch {ran}|  "])
def test_shell_pipes_are_refused_and_not_run(tmp_path: Path, entry: str) -> None:
    scp, ran = tmp_path / "xvector.scp", tmp_path / "ran"
    scp.write_text("utt " + entry.format(ran=ran) + "\n")
    with pytest.raises(InputError, match=r"xvector.scp:1: .* shell command"):
        load_embeddings(scp)
    assert not ran.exists()


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.ark").write_bytes(b"utt PKL" + pickle.dumps(_Touch(tmp_path / "ran")))
    (tmp_path / "x.scp").write_text(f"utt {tmp_path / 'x.ark'}:4\n")
    with pytest.raises(InputError, match=r"x.scp:1: there is no binary Kaldi vector at .*x.ark:4"):
        load_embeddings(tmp_path / "x.scp")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "x.scp is empty"),
        (lambda text: text + "alone\n", "x.scp:3: expected 'utt file.ark:offset', found 'alone'"),
        (lambda text: text + "c x.ark\n", "x.scp:3: expected"),
        (lambda text: text + "c -\n", "x.scp:3: expected"),
        (lambda text: text + text, "x.scp:3: a was already given at .*x.scp:1"),
        (lambda text: text.replace("x.ark", "gone.ark"), "x.scp:1: cannot read .*gone.ark"),
        (lambda text: text.replace(":2", ":3"), "x.scp:1: there is no binary Kaldi vector"),
        (lambda text: text + "c gone.ark:2\n", "x.scp:3: cannot read gone.ark"),
        (lambda text: text + "c x.ark:999999\n", "x.scp:3: there is no binary Kaldi vector at .*x.ark:999999"),
    ],
)
def test_other_lists_of_embeddings_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.scp"
    vectors = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    kaldiio.save_ark(str(tmp_path / "x.ark"), vectors, scp=str(path))
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        load_embeddings(path)


def test_damaged_and_unequal_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.scp does not exist; extract"):
        load_embeddings(tmp_path / "nothing.scp")
    scp = _save(tmp_path, {"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)})
    with pytest.raises(InputError, match=r"xvector.scp:2: the embedding of b has shape \(4,\), .* has 3 numbers"):
        load_embeddings(scp)
    scp = _save(tmp_path, {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    whole = (tmp_path / "xvector.ark").read_bytes()
    for lost in (1, 4, 13, 20):
        (tmp_path / "xvector.ark").write_bytes(whole[:-lost])
        with pytest.raises(InputError, match=r"xvector.scp:2: .*(damaged|has shape|no binary)"):
            load_embeddings(scp)


def test_mean_vectors(tmp_path: Path) -> None:
    path = tmp_path / "mean_vec.npy"
    with pytest.raises(InputError, match="does not exist"):
        load_mean_vec(path)
    for bad in (np.ones((2, 2)), np.array([1.0, np.nan]), np.array([1, 2])):
        np.save(path, bad)
        with pytest.raises(InputError, match="one vector of finite floats"):
            load_mean_vec(path)
    for content in (b"", b"not numpy", pickle.dumps([1.0])):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not an array saved by numpy"):
            load_mean_vec(path)
    np.save(path, np.ones(4, np.float32))
    assert load_mean_vec(path).tolist() == [1.0] * 4


def test_an_evaluation_leaves_scores_results_table_and_plot(scp: Path, tmp_path: Path) -> None:
    trials = _trials()
    write_kaldi_trials(tmp_path / "vox1_O_cleaned.kaldi", trials)
    mean = _embeddings().mean(axis=0)
    np.save(tmp_path / "mean_vec.npy", mean)
    output_dir = tmp_path / "exp" / "mini" / "scores"
    for _ in range(2):  # a second run replaces, it does not append
        evaluation = evaluate_embeddings(
            scp,
            [tmp_path / "vox1_O_cleaned.kaldi"],
            mean_vec=tmp_path / "mean_vec.npy",
            output_dir=output_dir,
            fars=[1e-1, 1e-3, 1e-5],
            replicates=100,
            note="synthetic",
        )
    assert {path.name for path in output_dir.iterdir()} == {
        "vox1_O_cleaned.kaldi.score",
        "results.json",
        "results.txt",
        "det.png",
        "det.svg",
    }
    listed, scores = read_scores(output_dir / "vox1_O_cleaned.kaldi.score")
    np.testing.assert_array_equal(scores, cosine_scores(trials, UTTS, _embeddings(), mean_vec=mean))
    assert listed.name(17) == trials.name(17)

    results = json.loads((output_dir / "results.json").read_text())
    assert results.pop("wespeaker_q") == wespeaker.__version__
    assert results == json.loads(json.dumps(evaluation.results))
    assert list(results) == ["note", "exp_dir", "score", "mean_vec", "trials"]
    assert results["exp_dir"] == str(tmp_path / "exp" / "mini")
    entry = results["trials"]["vox1_O_cleaned"]
    tradeoff = error_tradeoff(scores, trials.is_target)
    interval = entry.pop("interval")
    assert entry == error_rates(tradeoff, fars=[1e-1, 1e-3, 1e-5])
    assert (interval["level"], interval["replicates"], interval["num_speakers"]) == (0.95, 100, 10)
    assert interval["eer"][0] <= entry["eer"] <= interval["eer"][1]
    assert interval["min_dcf"]["0.01"][0] <= interval["min_dcf"]["0.01"][1]
    assert list(interval["tar_at_far"]) == ["0.1", "0.001", "1e-05"]
    assert interval["tar_at_far"]["1e-05"] is None
    assert list(entry["tar_at_far"]) == ["0.1", "0.001", "1e-05"]
    assert set(entry["tar_at_far"]["0.1"]) == {"tar", "far", "threshold", "num_false_accepts", "resolvable"}
    assert entry["tar_at_far"]["0.1"]["threshold"] == tar_at_far(tradeoff, 0.1).threshold
    assert not entry["tar_at_far"]["1e-05"]["resolvable"]
    assert entry["num_target"] + entry["num_nontarget"] == 3000

    table = (output_dir / "results.txt").read_text()
    assert table == evaluation.table + "\n"
    assert table.startswith("synthetic\n")
    assert f"not resolvable ({entry['num_nontarget']:,} nontargets)" in table
    assert f"{100 * entry['eer']:.3f}" in table
    assert max(map(len, table.splitlines())) <= 100

    again = evaluate_scores([output_dir / "vox1_O_cleaned.kaldi.score"], fars=[1e-1, 1e-3, 1e-5], replicates=100)
    assert again.results["trials"] == evaluation.results["trials"]
    assert again.results_path is None
    without = evaluate_scores([output_dir / "vox1_O_cleaned.kaldi.score"], fars=[1e-1, 1e-3, 1e-5], replicates=0)
    assert without.results["trials"] == {"vox1_O_cleaned": entry}


def test_without_matplotlib_all_but_the_plot_is_written(
    scp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_kaldi_trials(tmp_path / "all.kaldi", _trials(200))
    ask = partial(evaluate_embeddings, scp, [tmp_path / "all.kaldi"], output_dir=tmp_path / "scores", replicates=0)
    plotted = ask()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluation = ask()
    assert "no DET plot: matplotlib is not installed" in caplog.text
    assert "pip install '.[plot]'" in caplog.text
    assert evaluation.table == plotted.table
    assert (evaluation.det_path, evaluation.results_path) == (None, plotted.results_path)
    left = {path.name for path in (tmp_path / "scores").iterdir()}
    assert left == {"all.kaldi.score", "results.json", "results.txt"}  # the plot was of other scores


def test_a_failure_in_the_last_list_writes_nothing(scp: Path, tmp_path: Path) -> None:
    write_kaldi_trials(tmp_path / "good.kaldi", _trials())
    (tmp_path / "bad.kaldi").write_text(f"{UTTS[0]} unknown target\n")
    with pytest.raises(InputError, match=r"bad.kaldi with .*xvector.scp: 1 of 2 utterances .* no embedding: unknown"):
        evaluate_embeddings(scp, [tmp_path / "good.kaldi", tmp_path / "bad.kaldi"], output_dir=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_list_of_one_class_is_named(scp: Path, tmp_path: Path) -> None:
    (tmp_path / "one.kaldi").write_text(f"{UTTS[0]} {UTTS[1]} target\n")
    with pytest.raises(InputError, match=f"one.kaldi with .*no nontarget trials.*{UTTS[0]} {UTTS[1]}"):
        evaluate_embeddings(scp, [tmp_path / "one.kaldi"], output_dir=tmp_path / "scores")
    (tmp_path / "one.score").write_text("a b 0.5 nontarget\n")
    with pytest.raises(InputError, match=r"one.score: the list has no target trials.*: a b"):
        evaluate_scores([tmp_path / "one.score"])


def test_two_lists_of_one_name_are_refused(scp: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several files are called a;"):
        evaluate_embeddings(scp, [tmp_path / "a.kaldi", tmp_path / "a.txt"], output_dir=tmp_path)
    with pytest.raises(InputError, match="at least one file"):
        evaluate_scores([])


def test_voxceleb_and_kaldi_lists_score_alike(scp: Path, tmp_path: Path) -> None:
    trials = _trials(200)
    lines = (f"{int(trials.is_target[i])} {trials.name(i)}" for i in range(len(trials)))
    (tmp_path / "veri_test2.txt").write_text("\r\n".join(lines))
    evaluation = evaluate_embeddings(scp, [tmp_path / "veri_test2.txt"], output_dir=tmp_path / "scores")
    assert list(evaluation.results["trials"]) == ["veri_test2"]
    scores = cosine_scores(read_trials(tmp_path / "veri_test2.txt"), UTTS, _embeddings())
    np.testing.assert_array_equal(read_scores(tmp_path / "scores" / "veri_test2.txt.score")[1], scores)


def _sorted_sha256(text: str) -> str:
    lines = sorted(line.encode() + b"\n" for line in text.splitlines())
    return hashlib.sha256(b"".join(lines)).hexdigest()


def test_thresholds_for_target_fars_say_what_they_do_and_what_they_were_found_with(scp: Path, tmp_path: Path) -> None:
    trials = _trials()
    lists = tmp_path / "list.kaldi"
    write_kaldi_trials(lists, trials)
    output_dir = tmp_path / "exp" / "mini" / "scores"
    (tmp_path / "avg_model.pt").write_bytes(b"weights")
    pairs = zip(UTTS, _embeddings(), strict=True)
    scp = write_embeddings(tmp_path / "vox1", pairs, expected=len(UTTS), weights=tmp_path / "avg_model.pt")
    asked = {"target_fars": [1e-1, 1e-2, 1e-5], "replicates": 200}
    evaluation = evaluate_embeddings(scp, [lists], output_dir=output_dir, **asked)  # type: ignore[arg-type]
    assert evaluation.threshold_path == output_dir / "threshold.json"
    found = json.loads((output_dir / "threshold.json").read_text())
    assert found["decision"] == "accept where score >= threshold"
    assert (found["score"], found["mean_vec"]) == ("cosine", None)
    assert found["model"] == {
        "file": str(tmp_path / "avg_model.pt"), "sha256": hashlib.sha256(b"weights").hexdigest()
    }  # fmt: skip
    vectors = b"".join(
        utt.encode() + b"\n" + vector.tobytes() for utt, vector in sorted(zip(UTTS, _embeddings(), strict=True))
    )
    assert found["embeddings"] == {"file": str(scp), "sha256": hashlib.sha256(vectors).hexdigest()}
    entry = found["trials"]["list"]
    assert entry["trials_sha256"] == _sorted_sha256(lists.read_text())
    assert (entry["num_speakers"], entry["num_target"] + entry["num_nontarget"]) == (10, 3000)

    scores = cosine_scores(trials, UTTS, _embeddings())
    targets, nontargets = scores[trials.is_target], scores[~trials.is_target]
    for far, point in entry["target_far"].items():
        assert point["num_true_accepts"] == (targets >= point["threshold"]).sum()
        assert point["num_false_accepts"] == (nontargets >= point["threshold"]).sum() <= float(far) * nontargets.size
        assert point["far"] == point["num_false_accepts"] / nontargets.size
        exact = binomtest(point["num_false_accepts"], nontargets.size, alternative="less").proportion_ci(0.95, "exact")
        assert point["far_upper"]["clopper_pearson"] == pytest.approx(exact.high)
        assert point["interval"]["tar"][0] <= point["tar"] <= point["interval"]["tar"][1]
    for far in ("0.1", "0.01"):
        point = entry["target_far"][far]
        low, high = point["interval"]["far"]
        assert point["resolvable"]
        assert low < point["far"] < point["far_upper"]["bootstrap"] < high
    none = entry["target_far"]["1e-05"]
    assert not none["resolvable"]
    assert none["num_false_accepts"] == 0
    assert none["interval"]["far"] is none["far_upper"]["bootstrap"] is None
    assert none["far_upper"]["clopper_pearson"] == pytest.approx(3 / nontargets.size, rel=0.01)

    # The same trials in another order and format are the same list; the score file stands in for the embeddings.
    score_file = output_dir / "list.kaldi.score"
    score_file.write_text("".join(reversed(score_file.read_text().splitlines(keepends=True))))
    again = evaluate_scores([score_file], output_dir=tmp_path / "again", **asked)  # type: ignore[arg-type]
    assert again.threshold_path is not None
    other = json.loads(again.threshold_path.read_text())
    assert other["model"] is None
    third = evaluate_scores([score_file], output_dir=tmp_path / "again", scp=scp, **asked)  # type: ignore[arg-type]
    assert third.threshold_path is not None
    assert json.loads(third.threshold_path.read_text())["model"] == found["model"]
    assert other["trials"]["list"]["scores"]["sha256"] == hashlib.sha256(score_file.read_bytes()).hexdigest()
    assert other["trials"]["list"]["trials_sha256"] == entry["trials_sha256"]
    assert other["trials"]["list"]["target_far"] == entry["target_far"]

    # Thresholds do not outlive the scores they were found on.
    evaluate_embeddings(scp, [lists], output_dir=output_dir, replicates=0)
    assert not (output_dir / "threshold.json").exists()


def test_thresholds_without_intervals(scp: Path, tmp_path: Path) -> None:
    write_kaldi_trials(tmp_path / "list.kaldi", _trials())
    evaluate_embeddings(
        scp, [tmp_path / "list.kaldi"], output_dir=tmp_path / "scores", target_fars=[0.01], replicates=0
    )
    entry = json.loads((tmp_path / "scores" / "threshold.json").read_text())["trials"]["list"]
    assert entry["num_speakers"] is None
    assert "interval" not in entry["target_far"]["0.01"]
    assert entry["target_far"]["0.01"]["far_upper"]["clopper_pearson"] > entry["target_far"]["0.01"]["far"]


def test_speakers_are_looked_up_where_names_do_not_tell_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        f"utt{a} utt{b} {rng.standard_normal() + 2 * (a // 4 == b // 4):.6f} "
        f"{'target' if a // 4 == b // 4 else 'nontarget'}"
        for a in range(40)
        for b in range(a)
    ]
    (tmp_path / "a.score").write_text("\n".join(lines))
    (tmp_path / "utt2spk").write_text("".join(f"utt{i} spk{i // 4}\n" for i in range(40)))
    with pytest.raises(InputError, match=r"a.score: intervals need the speaker .* 40 of 40 names .*--utt2spk"):
        evaluate_scores([tmp_path / "a.score"])
    evaluation = evaluate_scores([tmp_path / "a.score"], utt2spk=tmp_path / "utt2spk", replicates=100)
    assert evaluation.results["trials"]["a"]["interval"]["num_speakers"] == 10
    assert "interval" not in evaluate_scores([tmp_path / "a.score"], replicates=0).results["trials"]["a"]


def test_a_few_replicates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"replicates must be 0 .* or at least 100, found 5"):
        evaluate_scores([tmp_path / "a.score"], replicates=5)
    with pytest.raises(InputError, match="give --output_dir"):
        evaluate_scores([tmp_path / "a.score"], target_fars=[0.1])


def _ark(dim: int, numbers: int = 3) -> bytes:
    return b"a \0BFV \x04" + dim.to_bytes(4, "little", signed=True) + bytes(4 * numbers)


@pytest.mark.parametrize(
    ("scp", "ark", "message"),
    [
        (
            "a x.ark:2\n",
            _ark(2**31 - 1),
            "x.scp:1: the vector at x.ark:2 claims 2147483647 numbers",
        ),  # 8 GiB, were it believed
        ("a x.ark:2\n", _ark(-1), "claims -1 numbers"),
        ("a x.ark:2\n", _ark(0), "claims 0 numbers"),
        ("a x.ark:2\n", _ark(65536), "the vector at x.ark:2 is damaged: the file ends in it"),
        ("a x.ark:" + "9" * 5000 + "\n", _ark(3), "expected 'utt file.ark:offset'"),
        ("a x\0.ark:2\n", _ark(3), "no path of a file"),
        ("a pipe:2\n", _ark(3), "x.scp:1: .*pipe is not a plain file"),
        ("a /dev/zero:2\n", _ark(3), "x.scp:1: .*not a plain file"),
    ],
)
def test_lies_of_arks_and_lists_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scp: str, ark: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("x.ark").write_bytes(ark)
    Path("x.scp").write_text(scp)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            load_embeddings("x.scp")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_lies_of_mean_vectors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mean_vec.npy"
    np.save(path, np.ones(3))
    good = path.read_bytes()
    for lie in (b"(99999999999,)", b"(-3,)", b"[" * 60, b"(3,3,3,3)"):
        path.write_bytes(good.replace(b"(3,), }" + b" " * (len(lie) - 4), lie + b", }"))
        with pytest.raises(InputError, match="is not an array saved by numpy"):
            load_mean_vec(path)
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    (tmp_path / "two.npz").rename(path)  # an archive of arrays
    with pytest.raises(InputError, match="is not an array saved by numpy"):
        load_mean_vec(path)
    np.save(path, np.array([_Touch(tmp_path / "ran")]), allow_pickle=True)
    with pytest.raises(InputError, match="is not an array saved by numpy"):
        load_mean_vec(path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_whose_name_is_a_command_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exp_dir of a config may be; kaldiio runs what is written to when its name begins with a bar."""
    monkeypatch.chdir(tmp_path)
    scp = write_embeddings(Path("| touch ran; cat >"), [("a", np.ones(3, np.float32))], expected=1)
    np.testing.assert_array_equal(load_embeddings(scp)[1], np.ones((1, 3)))
    assert [path.name for path in tmp_path.iterdir()] == ["| touch ran; cat >"]
