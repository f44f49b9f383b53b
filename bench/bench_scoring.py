"""How much faster is scoring a list of VoxCeleb1-H's size in blocks than trial by trial?

Reading the list, cosine scores after mean subtraction, and EER, minDCF and TAR at four FARs, for 550,894 synthetic
trials of 137,924 utterances with 256 numbers each. The baselines read, look up, subtract and compare one trial at a
time, with numpy or with scikit-learn's ``cosine_similarity`` on two vectors (WeSpeaker's way); they are timed on the
first trials, extrapolated to all, and spared the metrics. One thread, one process, taken in turn after a warm-up;
CPU time, medians. Run it from the repository root: python bench/bench_scoring.py [--rounds 5]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from measuring import Row, cpu_seconds, ratios, record
from numpy.typing import NDArray

from wespeaker.data.trials import Trials, read_trials, write_kaldi_trials
from wespeaker.eval.metrics import error_tradeoff
from wespeaker.eval.scoring import cosine_scores, error_rates

NUM_TRIALS, NUM_UTTS, UTTS_PER_SPK, EMBED_DIM = 550_894, 137_924, 110, 256
GOAL = 50.0  # times the speed of a scikit-learn call per trial
Cosine = Callable[[NDArray[np.float32], NDArray[np.float32]], float]


def corpus(path: Path) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """Write a list, half of it target trials; return utterances, embeddings and their mean."""
    rng = np.random.default_rng(0)
    speakers = rng.standard_normal((NUM_UTTS // UTTS_PER_SPK + 1, EMBED_DIM), dtype=np.float32)
    embeddings = rng.standard_normal((NUM_UTTS, EMBED_DIM), dtype=np.float32) * 2 + 1
    embeddings += speakers[np.arange(NUM_UTTS) // UTTS_PER_SPK]
    utts = [f"id{10000 + i // UTTS_PER_SPK}/{i % UTTS_PER_SPK:011d}/00001.wav" for i in range(NUM_UTTS)]
    enroll, test = rng.integers(0, NUM_UTTS, (2, NUM_TRIALS), dtype=np.int32)
    same = np.minimum(enroll[::2] // UTTS_PER_SPK * UTTS_PER_SPK + test[::2] % UTTS_PER_SPK, NUM_UTTS - 1)
    test[::2] = same
    write_kaldi_trials(path, Trials(utts, enroll, test, enroll // UTTS_PER_SPK == test // UTTS_PER_SPK))
    return utts, embeddings, embeddings.mean(axis=0)


def numpy_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def sklearn_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    from sklearn.metrics.pairwise import cosine_similarity

    return float(cosine_similarity(a.reshape(1, -1), b.reshape(1, -1))[0, 0])


def one_by_one(
    path: Path, table: dict[str, NDArray[np.float32]], mean: NDArray[np.float32], *, cosine: Cosine, num: int
) -> list[float]:
    scores = []
    with open(path) as file:
        for line in islice(file, num):
            enroll, test, _ = line.split()
            scores.append(cosine(table[enroll] - mean, table[test] - mean))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured repetitions (default 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vox1_H_like.kaldi")
        utts, embeddings, mean = corpus(path)
        table = dict(zip(utts, embeddings, strict=True))
        parts: dict[str, list[float]] = {"read": [], "score": [], "metrics": []}

        def in_blocks() -> NDArray[np.float64]:
            times = [time.process_time()]
            trials = read_trials(path)
            times.append(time.process_time())
            scores = cosine_scores(trials, utts, embeddings, mean_vec=mean)
            times.append(time.process_time())
            error_rates(error_tradeoff(scores, trials.is_target))
            times.append(time.process_time())
            for name, seconds in zip(parts, np.diff(times), strict=True):
                parts[name].append(float(seconds))
            return scores

        scores = in_blocks()
        tracemalloc.start()  # slows everything down, so apart from the timing
        cosine_scores(read_trials(path), utts, embeddings, mean_vec=mean)
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        baselines = {"numpy, one by one": (numpy_cosine, 20_000), "scikit-learn, one by one": (sklearn_cosine, 500)}
        for cosine, num in baselines.values():
            found = one_by_one(path, table, mean, cosine=cosine, num=min(num, 200))
            np.testing.assert_allclose(found, scores[: len(found)], atol=1e-5)
        for values in parts.values():
            values.clear()
        seconds: dict[str, list[float]] = {"in blocks": [], **{name: [] for name in baselines}}
        for _ in range(rounds):
            seconds["in blocks"].append(cpu_seconds(in_blocks))
            for name, (cosine, num) in baselines.items():
                spent = cpu_seconds(lambda c=cosine, n=num: one_by_one(path, table, mean, cosine=c, num=n))
                seconds[name].append(spent * NUM_TRIALS / num)

    def rows() -> Iterator[Row]:
        for name, spent in seconds.items():
            row: Row = {"how": name, "cpu_s": round(statistics.median(spent), 3)}
            if name in baselines:
                row["extrapolated_from_trials"] = baselines[name][1]
            else:
                row |= {f"{part}_s": round(statistics.median(values), 3) for part, values in parts.items()}
                row["peak_mb_beside_embeddings"] = round(peak_mb)
            row["times_as_long"], row["span"] = ratios(spent, seconds["in blocks"])
            yield row

    where = {"rounds": rounds, "num_trials": NUM_TRIALS, "num_utts": NUM_UTTS, "embed_dim": EMBED_DIM}
    medians = {}
    for row in record("scoring", rows(), numpy=np.__version__, **where):
        medians[row["how"]] = row["times_as_long"]
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    print(
        f"scoring: {medians['scikit-learn, one by one']:.0f}x (goal >= {GOAL:g}x, extrapolated; see also the numpy row)"
    )


if __name__ == "__main__":
    main()
