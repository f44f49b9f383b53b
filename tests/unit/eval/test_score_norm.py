"""AS-Norm and S-Norm against a loop over trials, what cohorts are refused, and the files that are left."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from numpy.typing import NDArray

from wespeaker.data.trials import Trials, read_normalised_scores, read_scores, write_scores
from wespeaker.errors import InputError
from wespeaker.eval import score_norm
from wespeaker.eval.score_norm import (
    STD_FLOOR,
    Cohort,
    CohortStatistics,
    cohort_statistics,
    load_cohort,
    make_cohort,
    normalise,
    normalise_files,
    quality,
    score_kind,
)
from wespeaker.eval.scoring import cosine_scores

DIM, NUM_SPK = 16, 30
UTTS = [f"id{i // 5}/v{i % 5}/00001.wav" for i in range(50)]
TRAIN = {f"train{i % NUM_SPK:02d}/v/{i:05d}.wav": f"train{i % NUM_SPK:02d}" for i in range(100)}


def _embeddings(num: int, seed: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((num, DIM)) + 1).astype(np.float32)


TEST_EMBEDDINGS, TRAIN_EMBEDDINGS = _embeddings(50, 0), _embeddings(100, 1)
MEAN = TRAIN_EMBEDDINGS.mean(axis=0)


def _cohort() -> Cohort:
    return make_cohort(list(TRAIN), TRAIN_EMBEDDINGS, TRAIN, mean_vec=MEAN)


def _trials(num: int = 400) -> Trials:
    enroll, test = np.random.default_rng(2).integers(0, 50, (2, num)).astype(np.int32)
    return Trials(UTTS, enroll, test, enroll // 5 == test // 5)


def _naive(trials: Trials, top_n: int) -> list[float]:
    """Normalise trial by trial in plain Python, each side anew, by a full sort: the definition."""
    spks = sorted(set(TRAIN.values()))
    train = dict(zip(TRAIN, TRAIN_EMBEDDINGS.astype(np.float64), strict=True))
    means = {
        spk: sum(train[utt] for utt in train if TRAIN[utt] == spk) / list(TRAIN.values()).count(spk) for spk in spks
    }

    def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def side(utt: int, score: float) -> float:
        embedding = TEST_EMBEDDINGS[utt].astype(np.float64) - MEAN
        top = sorted((cosine(embedding, means[spk] - MEAN) for spk in spks), reverse=True)[:top_n]
        mean = sum(top) / top_n
        return (score - mean) / np.sqrt(sum((s - mean) ** 2 for s in top) / top_n)

    scores = []
    for e, t in zip(trials.enroll, trials.test, strict=True):
        raw = cosine(TEST_EMBEDDINGS[e].astype(np.float64) - MEAN, TEST_EMBEDDINGS[t].astype(np.float64) - MEAN)
        scores.append(0.5 * (side(e, raw) + side(t, raw)))
    return scores


def _normalised(trials: Trials, top_n: int | None) -> NDArray[np.float64]:
    scores = cosine_scores(trials, UTTS, TEST_EMBEDDINGS, mean_vec=MEAN)
    return normalise(scores, trials, cohort_statistics(UTTS, UTTS, TEST_EMBEDDINGS, _cohort(), top_n=top_n))


@pytest.mark.parametrize("top_n", [2, 7, NUM_SPK, None])
def test_scores_equal_the_definition(top_n: int | None) -> None:
    trials = _trials()
    expected = _naive(trials, top_n or NUM_SPK)
    found = _normalised(trials, top_n)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_neither_blocks_nor_the_order_of_utterances_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = _cohort()
    whole = cohort_statistics(UTTS, UTTS, TEST_EMBEDDINGS, cohort, top_n=5)
    order = np.random.default_rng(3).permutation(50)
    monkeypatch.setattr(score_norm, "BLOCK", 7)
    parts = cohort_statistics([UTTS[i] for i in order], UTTS, TEST_EMBEDDINGS, cohort, top_n=5)
    for name in ("norm", "mean", "std"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole[order], name), rtol=1e-12, atol=0)


def test_the_cohort_is_of_speaker_means_without_the_mean_vector() -> None:
    cohort = _cohort()
    assert list(cohort.spks) == sorted(set(TRAIN.values()))
    rows = [i for i, spk in enumerate(TRAIN.values()) if spk == "train03"]
    assert len(rows) == 4
    centred = TRAIN_EMBEDDINGS[rows].astype(np.float64).mean(axis=0) - MEAN
    np.testing.assert_allclose(cohort.directions[3], centred / np.linalg.norm(centred), rtol=1e-12)


def test_a_training_utterance_is_not_compared_with_its_own_speaker() -> None:
    cohort, utts = _cohort(), list(TRAIN)
    own = np.searchsorted(cohort.spks, list(TRAIN.values()))
    for top_n in (5, None):
        found = cohort_statistics(utts, utts, TRAIN_EMBEDDINGS, cohort, top_n=top_n, own=own)
        for i in (0, 31, 99):
            others = Cohort(
                np.delete(cohort.spks, own[i]).tolist(), np.delete(cohort.directions, own[i], axis=0), cohort.mean_vec
            )
            alone = cohort_statistics([utts[i]], utts, TRAIN_EMBEDDINGS, others, top_n=top_n)
            assert found.mean[i] == pytest.approx(alone.mean[0], rel=1e-12)
            assert found.std[i] == pytest.approx(alone.std[0], rel=1e-12)


def test_memory_does_not_grow_with_the_utterances() -> None:
    rng = np.random.default_rng(0)
    cohort = Cohort(list(map(str, range(2000))), rng.standard_normal((2000, DIM)), np.zeros(DIM))
    peaks = []
    for num in (1024, 8192):
        utts, embeddings = list(map(str, range(num))), rng.standard_normal((num, DIM), dtype=np.float32)
        tracemalloc.start()
        cohort_statistics(utts, utts, embeddings, cohort, top_n=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 8192 * 200 < 8192 * 2000 * 8 / 5


def test_a_cohort_of_one_voice_gives_finite_scores() -> None:
    cohort = Cohort(list("abcd"), np.ones((4, DIM)) / np.sqrt(DIM), np.zeros(DIM))
    statistics = cohort_statistics(UTTS, UTTS, TEST_EMBEDDINGS, cohort, top_n=3)
    np.testing.assert_array_equal(statistics.std, STD_FLOOR)
    assert np.isfinite(normalise(np.zeros(400), _trials(), statistics)).all()


def test_quality_is_of_the_enrolled_and_the_tested_utterance() -> None:
    trials = Trials(list("abc"), np.array([0, 2], np.int32), np.array([1, 0], np.int32), np.array([True, False]))
    statistics = CohortStatistics(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]), np.ones(3))
    assert quality(trials, statistics).tolist() == [[1.0, 2.0, 0.1, 0.2], [3.0, 1.0, 0.3, 0.1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_n": NUM_SPK + 1}, "cohort has 30 speakers, which is fewer than top_n = 31; give .* at most 30"),
        ({"top_n": NUM_SPK, "own": np.zeros(50, np.intp)}, "29 speakers beside an utterance's own, .* at most 29"),
        ({"top_n": 1}, "at least 2 speakers, found 1"),
        ({"wanted": ["new", *UTTS]}, "1 of 51 utterances in the trials have no embedding: new"),
        ({"embeddings": TEST_EMBEDDINGS[:, :8]}, "the embeddings have 8 numbers, those of the cohort 16"),
        ({"embeddings": np.where(np.eye(50)[3:4].T == 1, MEAN, TEST_EMBEDDINGS)}, "norm 0 after .*: id0/v3/00001.wav"),
        ({"embeddings": np.full((50, DIM), np.nan)}, "50 of 50 embeddings cannot be scored"),
    ],
)  # fmt: skip
def test_what_cannot_be_normalised_is_a_sentence(change: dict[str, object], message: str) -> None:
    arguments = {"wanted": UTTS, "utts": UTTS, "embeddings": TEST_EMBEDDINGS, "cohort": _cohort(), "top_n": 5, **change}
    with pytest.raises(InputError, match=message):
        cohort_statistics(**arguments)  # type: ignore[arg-type]


def test_cohorts_that_are_refused() -> None:
    utts = list(TRAIN)
    with pytest.raises(InputError, match=r"1 utterances of the cohort have an embedding or a speaker, .*: train00/v/0"):
        make_cohort(utts, TRAIN_EMBEDDINGS, {utt: TRAIN[utt] for utt in utts[1:]})
    with pytest.raises(InputError, match="extract the embeddings of the whole set"):
        make_cohort(utts[1:], TRAIN_EMBEDDINGS[1:], TRAIN)
    with pytest.raises(InputError, match=r"shape \(8,\), the embeddings have 16 numbers"):
        make_cohort(utts, TRAIN_EMBEDDINGS, TRAIN, mean_vec=np.zeros(8))
    with pytest.raises(InputError, match=r"30 of 30 embeddings .* norm 0 after subtraction of the mean: train00, "):
        make_cohort(utts, np.ones((100, DIM)), TRAIN, mean_vec=np.ones(DIM))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Embeddings of the test and of the training set, utt2spk, the mean, and a score file."""
    for name, utts, vectors in (("vox1", UTTS, TEST_EMBEDDINGS), ("vox2_dev", TRAIN, TRAIN_EMBEDDINGS)):
        (tmp_path / name).mkdir()
        pairs = dict(zip(utts, vectors, strict=True))
        kaldiio.save_ark(str(tmp_path / name / "xvector.ark"), pairs, scp=str(tmp_path / name / "xvector.scp"))
    (tmp_path / "utt2spk").write_text("".join(f"{utt} {spk}\n" for utt, spk in TRAIN.items()))
    np.save(tmp_path / "mean_vec.npy", MEAN)
    scores = cosine_scores(_trials(), UTTS, TEST_EMBEDDINGS, mean_vec=MEAN)
    write_scores(tmp_path / "all.kaldi.score", _trials(), scores)
    return tmp_path


def _normalise_files(files: Path, *names: str, top_n: int = 7) -> list[Path]:
    return normalise_files(
        [files / name for name in names],
        scp=files / "vox1" / "xvector.scp",
        cohort=load_cohort(files / "vox2_dev" / "xvector.scp", files / "utt2spk", mean_vec=files / "mean_vec.npy"),
        top_n=top_n,
        output_dir=files / "scores",
        kind=score_kind("asnorm", top_n, cohort_name="vox2_dev"),
    )


def test_files_have_the_eight_columns_of_wespeaker(files: Path) -> None:
    part = Trials(UTTS[40:], np.array([1, 2], np.int32), np.array([3, 9], np.int32), np.array([True, False]))
    write_scores(files / "part.kaldi.score", part, [0.5, -0.5])
    found = _normalise_files(files, "all.kaldi.score", "part.kaldi.score")
    assert found == [files / "scores" / f"vox2_dev_asnorm7_{name}.kaldi.score" for name in ("all", "part")]
    trials, scores, sides = read_normalised_scores(found[0])
    np.testing.assert_allclose(scores, _naive(_trials(), 7), atol=1e-9)
    np.testing.assert_array_equal(scores, read_scores(found[0])[1])
    first = found[0].read_text().splitlines()[0].split()
    assert first[:2] == _trials().name(0).split()
    assert len(first) == 8
    norms = np.linalg.norm(TEST_EMBEDDINGS.astype(np.float64) - MEAN, axis=1)
    np.testing.assert_allclose(sides[:, 0], norms[_trials().enroll], rtol=1e-12)
    np.testing.assert_allclose(sides[:, 1], norms[_trials().test], rtol=1e-12)
    assert trials.name(17) == _trials().name(17)

    statistics = cohort_statistics(UTTS, UTTS, TEST_EMBEDDINGS, _cohort(), top_n=7)
    listed, of_part, sides = read_normalised_scores(found[1])
    assert listed.name(1) == f"{UTTS[42]} {UTTS[49]}"
    np.testing.assert_allclose(sides[:, 2:], statistics.mean[[[41, 43], [42, 49]]], rtol=1e-12)
    expected = normalise([0.5, -0.5], Trials(UTTS, part.enroll + 40, part.test + 40, part.is_target), statistics)
    np.testing.assert_allclose(of_part, expected, rtol=1e-12)

    before = [path.read_bytes() for path in found]
    assert [path.read_bytes() for path in _normalise_files(files, "all.kaldi.score", "part.kaldi.score")] == before


def test_a_cohort_of_speakers_means_is_that_of_their_utterances(files: Path) -> None:
    """``spk_xvector.scp``, WeSpeaker's cohort, has float32 means."""
    means = {spk: np.mean([TRAIN_EMBEDDINGS[i] for i, of in enumerate(TRAIN.values()) if of == spk], axis=0)
             for spk in sorted(set(TRAIN.values()))}  # fmt: skip
    scp = files / "vox2_dev" / "spk_xvector.scp"
    kaldiio.save_ark(str(scp.with_suffix(".ark")), means, scp=str(scp))
    cohort = load_cohort(scp, mean_vec=files / "mean_vec.npy")
    assert cohort.spks == _cohort().spks
    np.testing.assert_allclose(cohort.directions, _cohort().directions, atol=1e-6)
    with pytest.raises(InputError, match=r"xvector\.scp are needed \(--cohort_utt2spk\); means .*called spk_xvector"):
        load_cohort(files / "vox2_dev" / "xvector.scp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{UTTS[0]} {UTTS[1]} 0.5 maybe\n",
            r"bad.score:1: expected 'utt1 utt2 score target\|nontarget' or .*, found",
        ),
        (f"{UTTS[0]} new 0.5 target\n", r"xvector.scp: 1 of 51 utterances in the trials have no embedding: new"),
        (f"{UTTS[0]} {UTTS[1]} nan target\n", "bad.score:1: the score must be a finite number"),
    ],
)
def test_a_bad_file_stops_all_before_anything_is_written(files: Path, text: str, message: str) -> None:
    (files / "bad.score").write_text(text)
    with pytest.raises(InputError, match=message):
        _normalise_files(files, "all.kaldi.score", "bad.score")
    assert not (files / "scores").exists()


def test_scores_without_labels_are_normalised_to_the_same(files: Path) -> None:
    lines = [line.split() for line in (files / "all.kaldi.score").read_text().splitlines()]
    (files / "blind.score").write_text("".join(f"{a} {b} {score}\n" for a, b, score, _ in lines))
    labelled, blind = _normalise_files(files, "all.kaldi.score", "blind.score")
    expected = [line.split()[:3] for line in labelled.read_text().splitlines()]
    assert [line.split() for line in blind.read_text().splitlines()] == expected


def test_two_files_of_one_name_are_refused(files: Path) -> None:
    with pytest.raises(InputError, match=r"several score files are called all\.kaldi\.score;"):
        _normalise_files(files, "all.kaldi.score", "vox1/../all.kaldi.score")


def test_kinds_have_the_names_of_wespeaker() -> None:
    assert score_kind("asnorm", 300, cohort_name="vox2_dev") == "vox2_dev_asnorm300"
    assert score_kind("snorm", 300, cohort_name="vox2_dev") == "vox2_dev_snorm"
