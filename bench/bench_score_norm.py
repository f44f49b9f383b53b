"""How much longer than its matrix product does AS-Norm take, and in how much memory, at VoxCeleb1-H's size?

Statistics of the 300 nearest of 5,994 cohort speakers for each of 137,924 synthetic utterances with 256 numbers. The
baseline is the matrix product alone: the same blocks of rows, in float64, each into the same array. Both are timed in
turn on the first utterances, one thread, CPU time, medians of the ratios round by round. The peak memory is that of a
process of its own that describes all utterances, embeddings included. WeSpeaker's way (all scores, then a full sort;
its float32) is timed on the same utterances for comparison.
Run it from the repository root: python bench/bench_score_norm.py [--rounds 5]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from measuring import Row, cpu_seconds, in_turn, memory_mb, ratios, record
from numpy.typing import NDArray

from wespeaker.eval import score_norm
from wespeaker.eval.score_norm import Cohort, CohortStatistics, cohort_statistics

NUM_UTTS, NUM_TIMED, NUM_SPK, TOP_N, EMBED_DIM = 137_924, 8192, 5994, 300, 256
GOAL, GOAL_MB = 2.5, 2000.0

Matrix = NDArray[np.floating[Any]]


def corpus(num_utts: int) -> tuple[list[str], NDArray[np.float32], Cohort]:
    """Draw utterances, and a cohort around the same mean."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((num_utts, EMBED_DIM), dtype=np.float32) + 1
    cohort = rng.standard_normal((NUM_SPK, EMBED_DIM))
    cohort /= np.linalg.norm(cohort, axis=1, keepdims=True)
    return (
        [str(i) for i in range(num_utts)],
        embeddings,
        Cohort(list(map(str, range(NUM_SPK))), cohort, np.ones(EMBED_DIM)),
    )


def describe(utts: list[str], embeddings: NDArray[np.float32], cohort: Cohort) -> CohortStatistics:
    return cohort_statistics(utts, utts, embeddings, cohort, top_n=TOP_N)


def products(directions: Matrix, cohort: Matrix) -> None:
    """Compute the scores block by block and forget them."""
    block = score_norm.BLOCK
    scores = np.empty((block, len(cohort)), dtype=directions.dtype)
    for start in range(0, len(directions), block):
        rows = directions[start : start + block]
        np.matmul(rows, cohort.T, out=scores[: len(rows)])


def full_sort(directions: Matrix, cohort: Matrix) -> tuple[Matrix, Matrix]:
    top = -np.sort(-(directions @ cohort.T), axis=1)[:, :TOP_N]
    return top.mean(axis=1), top.std(axis=1)


def peak() -> None:
    """Describe all utterances in this process and print its peak memory as JSON."""
    seconds = cpu_seconds(lambda: describe(*corpus(NUM_UTTS)))
    print(json.dumps({"peak_mb": round(memory_mb("VmHWM")), "cpu_s_with_corpus": round(seconds, 1)}))


def rows(rounds: int) -> Iterator[Row]:
    utts, embeddings, cohort = corpus(NUM_TIMED)
    directions = embeddings - cohort.mean_vec
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    narrow = directions.astype(np.float32), cohort.directions.astype(np.float32)
    found, (mean, std) = describe(utts, embeddings, cohort), full_sort(*narrow)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.std, std, atol=1e-5)
    seconds = in_turn(
        {
            "matrix product alone": lambda: cpu_seconds(lambda: products(directions, cohort.directions)),
            "cohort statistics": lambda: cpu_seconds(lambda: describe(utts, embeddings, cohort)),
            "full sort, float32": lambda: cpu_seconds(lambda: full_sort(*narrow)),
        },
        rounds,
    )
    for name, spent in seconds.items():
        times_as_long, span = ratios(spent, seconds["matrix product alone"])
        all_s = round(statistics.median(spent) * NUM_UTTS / NUM_TIMED, 1)
        yield {"how": name, "cpu_s_extrapolated_to_all": all_s, "times_as_long": times_as_long, "span": span}
    done = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
    yield {"how": "cohort statistics of all, own process", **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured repetitions (default 5)")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak()
        return
    where = {"rounds": args.rounds, "num_utts": NUM_UTTS, "num_timed": NUM_TIMED, "num_spk": NUM_SPK, "top_n": TOP_N}
    found: dict[str, Row] = {}
    for row in record("score_norm", rows(args.rounds), numpy=np.__version__, embed_dim=EMBED_DIM, **where):
        found[row["how"]] = row
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    ratio, peak_mb = (
        found["cohort statistics"]["times_as_long"],
        found["cohort statistics of all, own process"]["peak_mb"],
    )
    print(f"score_norm: {ratio:.2f}x (goal <= {GOAL:g}x), {peak_mb:,} MB (goal < {GOAL_MB:,.0f} MB)")


if __name__ == "__main__":
    main()
