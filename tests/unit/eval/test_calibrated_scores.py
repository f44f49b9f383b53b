"""From embeddings of training speakers to calibrated scores of others, and the files on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from wespeaker.data.trials import Trials, read_normalised_scores, read_scores, write_scores
from wespeaker.errors import InputError
from wespeaker.eval.calibrated_scores import (
    calibrate_files,
    calibration_effect,
    effect_table,
    read_durations,
    train_calibration,
)
from wespeaker.eval.calibration import Calibration, fit_calibration, trial_features, trial_measures
from wespeaker.eval.embeddings import load_embeddings
from wespeaker.eval.score_norm import Cohort, cohort_statistics, load_cohort, normalise_files

DIM, KIND = 32, "vox2_dev_asnorm20"
Paths = dict[str, Path]


def _speakers(name: str, num: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Embeddings and durations of speakers x 3 sessions x 2 utterances; the shorter, the noisier."""
    embeddings, durations = {}, {}
    for s in range(num):
        voice = rng.standard_normal(DIM)
        for i in range(6):
            utt = f"{name}{s:03d}/v{i // 2}/{i % 2}.wav"
            durations[utt] = float(rng.uniform(2, 10))
            noise = rng.standard_normal(DIM) * 1.1 / np.sqrt(durations[utt] / 4)
            embeddings[utt] = (voice + noise + 0.5).astype(np.float32)
    return embeddings, durations


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A training set of 80 speakers, a test set of 40 others with all pairs as trials, and their normalised scores."""
    root, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(0)
    found = {"root": root, "mean_vec": root / "mean_vec.npy", "test_dur": root / "utt2dur"}
    for name, folder, num in (("train", "vox2_dev", 80), ("test", "vox1", 40)):
        embeddings, durations = _speakers(name, num, rng)
        found[name] = root / folder
        found[name].mkdir()
        kaldiio.save_ark(str(root / folder / "x.ark"), embeddings, scp=str(root / folder / "xvector.scp"))
        (root / folder / "utt2dur").write_text("".join(f"{utt} {sec:.6f}\n" for utt, sec in durations.items()))
        (root / folder / "utt2spk").write_text("".join(f"{utt} {utt[:-9]}\n" for utt in durations))
        if name == "train":
            np.save(root / "mean_vec.npy", np.mean(list(embeddings.values()), axis=0))
    utts = list(embeddings)
    enroll, test = (side.astype(np.int32) for side in np.triu_indices(len(utts), k=1))
    trials = Trials(utts, enroll, test, enroll // 6 == test // 6)
    vectors = np.array(list(embeddings.values()), dtype=np.float64) - np.load(root / "mean_vec.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_scores(root / "all.kaldi.score", trials, (vectors @ vectors.T)[enroll, test])
    cohort = load_cohort(root / "vox2_dev/xvector.scp", root / "vox2_dev/utt2spk", mean_vec=root / "mean_vec.npy")
    (found["scores"],) = normalise_files(
        [root / "all.kaldi.score"], scp=root / "vox1/xvector.scp", cohort=cohort, top_n=20, output_dir=root, kind=KIND
    )
    return found


def _cohort(paths: Paths) -> Cohort:
    return load_cohort(paths["train"] / "xvector.scp", paths["train"] / "utt2spk", mean_vec=paths["mean_vec"])


def _train(paths: Paths, output_dir: Path, **options: object) -> Calibration:
    arguments = {"top_n": 20, "score": KIND, "num_trials": 3000, "output_dir": output_dir, **options}
    return train_calibration(
        paths["train"], paths["train"] / "xvector.scp", _cohort(paths), **arguments  # type: ignore[arg-type]
    )  # fmt: skip


def test_other_speakers_are_calibrated_by_training_speakers(paths: Paths, tmp_path: Path) -> None:
    calibration = _train(paths, tmp_path)
    assert calibration.score == KIND
    assert calibration.measures == ("duration", "norm", "cohort_mean")
    assert {path.name for path in tmp_path.iterdir()} == {"vox2_cali.kaldi", f"{KIND}_vox2_cali.kaldi.score"}
    # The calibration is that of the file which was left.
    trials, scores, quality = read_normalised_scores(tmp_path / f"{KIND}_vox2_cali.kaldi.score")
    assert len(trials) == calibration.num_target + calibration.num_nontarget
    durations = read_durations(paths["train"] / "utt2dur")
    features = trial_features(scores, trial_measures(trials, quality, utt2dur=durations))
    assert fit_calibration(features, trials.is_target, score=KIND).weights == pytest.approx(calibration.weights)

    durations = read_durations(paths["test"] / "utt2dur")
    effects = calibrate_files([paths["scores"]], calibration, utt2dur=durations, output_dir=tmp_path)
    ((path, effect),) = effects.items()
    assert path == tmp_path / f"cali_{KIND}_all.kaldi.score"
    assert len(path.read_text().splitlines()[0].split()) == 4
    trials, llr = read_scores(path)
    before = read_scores(paths["scores"])
    assert trials.name(99) == before[0].name(99)
    assert effect == calibration_effect(before[1], llr, trials, p_target=0.01)
    assert effect.act_dcf < 1.1 * effect.min_dcf < 0.9
    assert effect.min_cllr < effect.cllr < effect.min_cllr + 0.05
    assert effect.min_cllr < effect.min_cllr_before  # the durations tell something
    found = json.loads((tmp_path / f"cali_{KIND}_effect.json").read_text())
    assert found["score_files"] == {path.name: vars(effect)}
    table = effect_table({"all": effect}, p_target=0.01)
    assert f"{effect.act_dcf:.4f}" in table
    assert max(map(len, table.splitlines())) <= 100


def test_the_same_seed_trains_the_same_calibration(paths: Paths, tmp_path: Path) -> None:
    first, again, other = (_train(paths, tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.fingerprint != other.fingerprint


def test_without_measures_the_order_of_scores_is_kept(paths: Paths, tmp_path: Path) -> None:
    calibration = _train(paths, tmp_path, measures=())
    assert list(calibration.weights) == ["score"]
    (effect,) = calibrate_files([paths["scores"]], calibration, utt2dur=None, output_dir=tmp_path).values()
    assert effect.min_cllr == pytest.approx(effect.min_cllr_before)
    assert effect.min_dcf == pytest.approx(effect.min_dcf_before)


def test_speakers_that_are_not_in_the_cohort_are_compared_with_all_of_it(paths: Paths, tmp_path: Path) -> None:
    scp, options = paths["test"] / "xvector.scp", {"top_n": None, "score": "snorm", "output_dir": tmp_path}
    calibration = train_calibration(paths["test"], scp, _cohort(paths), **options)  # type: ignore[arg-type]
    trials, _, quality = read_normalised_scores(tmp_path / "snorm_vox2_cali.kaldi.score")
    utts, embeddings = load_embeddings(scp)
    expected = cohort_statistics(trials.utts, utts, embeddings, _cohort(paths), top_n=None)
    np.testing.assert_array_equal(quality[:, 2], expected.mean[trials.enroll])
    assert calibration.num_target == 40 * 12

    cohort = _cohort(paths)
    part = replace(cohort, spks=["test000", *cohort.spks[1:]])
    with pytest.raises(InputError, match=r"39 of 40 speakers of the trials are not in the cohort.*: test001"):
        train_calibration(paths["test"], scp, part, **options)  # type: ignore[arg-type]


def test_what_cannot_be_trained_on_is_a_sentence(paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"xvector.scp with .*vox2_dev: the cohort has 79 speakers beside .* top_n = 80"
    ):
        _train(paths, tmp_path, top_n=80)
    with pytest.raises(InputError, match="'snr' is no quality measure; valid names: cohort_mean, duration, norm"):
        _train(paths, tmp_path, measures=("snr",))
    with pytest.raises(InputError, match=r"utt2spk \(the speakers of the calibration trials\) does not exist"):
        train_calibration(
            tmp_path, paths["train"] / "xvector.scp", _cohort(paths), top_n=20, score=KIND, output_dir=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_calibrated_is_a_sentence_and_leaves_nothing(paths: Paths, tmp_path: Path) -> None:
    calibration = Calibration(KIND, 0.01, {"score": 1.0, "duration_min": 0.1}, 0.0, 1, 1, "")
    raw = tmp_path / f"{KIND}_raw.kaldi.score"
    raw.write_text((paths["root"] / "all.kaldi.score").read_text())
    one = tmp_path / f"{KIND}_one.kaldi.score"
    one.write_text("a b 0.5 target 1 1 1 1\n")
    good = tmp_path / f"{KIND}_good.kaldi.score"
    good.write_text("a b 0.5 target 1 1 1 1\na a 0.5 nontarget 1 1 1 1\n")
    durations = {"a": 1.0, "b": 2.0}
    for path, message in (
        (raw, r"raw.kaldi.score:1: expected .* found .*; make files of normalised scores with tools/score_norm.py"),
        (one, r"one.kaldi.score: the list has no nontarget trials"),
        (paths["scores"], r"all.kaldi.score: 240 of 240 utterances have no duration: test000/v0/0.wav, .* 230 more"),
        (
            paths["root"] / "all.kaldi.score",
            "the calibration is for scores called vox2_dev_asnorm20_…, found .*/all.kaldi",
        ),
    ):
        with pytest.raises(InputError, match=message):
            calibrate_files([good, path], calibration, utt2dur=durations, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf"])
def test_durations_are_numbers_of_seconds(tmp_path: Path, text: str) -> None:
    (tmp_path / "utt2dur").write_text(f"a 1.5\nb {text}\n")
    with pytest.raises(InputError, match=f"utt2dur: the duration of b must be a number of seconds, found '{text}'"):
        read_durations(tmp_path / "utt2dur")


def test_without_utt2dur_durations_are_those_of_the_audio(data_dir: Path, tmp_path: Path) -> None:
    """WeSpeaker's data folders have none before calibration."""
    for name in ("wav.scp", "utt2spk"):
        (tmp_path / name).write_bytes((data_dir / "vox1" / name).read_bytes())
    written = read_durations(data_dir / "vox1" / "utt2dur")
    found = read_durations(tmp_path / "utt2dur")
    assert found.keys() == written.keys()
    assert all(found[utt] == pytest.approx(written[utt], abs=1e-6) for utt in found)
    with pytest.raises(InputError, match=r"utt2dur \(the durations\) does not exist"):
        read_durations(tmp_path / "elsewhere" / "utt2dur")
