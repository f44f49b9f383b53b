"""What does the evaluation of a face network on a test of IJB-C's size cost, once images are embedded?

The test is synthetic: 469,375 images with embeddings of 512 numbers in 23,124 templates of 3,531 identities, and
15,658,489 pairs of templates in random order, 19,557 of them targets. Parts, in turn:

- pooling: images to templates, against a loop over templates and media as in ArcFace's code.
- scores: cosines of all pairs, against products of blocks of 100,000 pairs as there.
- rates: EER, minDCF and TAR at six FARs, against scikit-learn's ``roc_curve``.

CPU time of one thread; the loop over templates is timed on the first and extrapolated to all. The peak of memory is
that of `evaluate_templates`, in a process of its own, above the test itself. Run it from the repository root:
python bench/bench_templates.py [--rounds 3]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measuring import Row, cpu_seconds, forget_peak, in_turn, median_ms, memory_mb, ratios, record
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from sklearn.preprocessing import normalize

from wespeaker.eval.faces.templates import pool_templates
from wespeaker.eval.faces.verification import TEMPLATE_FARS, evaluate_templates, pair_scores
from wespeaker.eval.metrics import error_tradeoff
from wespeaker.eval.results import Asked, error_rates

NUM_IMAGES, NUM_TEMPLATES, NUM_IDENTITIES = 469_375, 23_124, 3_531
NUM_PAIRS, NUM_TARGETS, EMBED_DIM = 15_658_489, 19_557, 512
NUM_LOOPED = 500  # templates that the loop is timed on
GOALS = {"cpu_s": 60.0, "peak_mb": 2000}


@dataclass(frozen=True)
class Test:
    """A synthetic test."""

    embeddings: NDArray[np.float32]
    template: NDArray[np.int32]
    media: NDArray[np.int32]
    pairs: NDArray[np.int32]
    is_target: NDArray[np.bool_]


def make_test() -> Test:
    """Make templates of which the first are one of each identity, and compare those with the others, as IJB-C does."""
    rng = np.random.default_rng(0)
    others = NUM_TEMPLATES - NUM_IDENTITIES
    identity = np.append(np.arange(NUM_IDENTITIES), rng.integers(NUM_IDENTITIES, size=others))
    template = np.append(np.arange(NUM_TEMPLATES), rng.integers(NUM_TEMPLATES, size=NUM_IMAGES - NUM_TEMPLATES))
    embeddings = rng.standard_normal((NUM_IMAGES, EMBED_DIM), dtype=np.float32)
    embeddings += 0.2 * rng.standard_normal((NUM_IDENTITIES, EMBED_DIM), dtype=np.float32)[identity[template]]
    pairs = np.empty((NUM_PAIRS, 2), dtype=np.int32)
    pairs[:, 0] = rng.integers(NUM_IDENTITIES, size=NUM_PAIRS)
    pairs[:, 1] = rng.integers(NUM_IDENTITIES, NUM_TEMPLATES, size=NUM_PAIRS)
    pairs[:NUM_TARGETS, 1] = NUM_IDENTITIES + np.arange(NUM_TARGETS)
    pairs[:NUM_TARGETS, 0] = identity[pairs[:NUM_TARGETS, 1]]
    clashes = NUM_TARGETS + np.flatnonzero(identity[pairs[NUM_TARGETS:, 1]] == pairs[NUM_TARGETS:, 0])
    pairs[clashes, 0] = (pairs[clashes, 0] + 1) % NUM_IDENTITIES
    rng.shuffle(pairs)
    media = rng.integers(40, size=NUM_IMAGES, dtype=np.int32)
    return Test(embeddings, template.astype(np.int32), media, pairs, identity[pairs[:, 1]] == pairs[:, 0])


def looped_pooling(test: Test, num: int) -> NDArray[np.float64]:
    pooled = np.zeros((num, EMBED_DIM))
    for t in range(num):
        (own,) = np.where(test.template == t)
        of_media = [test.embeddings[own[test.media[own] == m]] for m in np.unique(test.media[own])]
        pooled[t] = np.sum([np.mean(images, axis=0) for images in of_media], axis=0)
    return normalize(pooled)


def looped_scores(pooled: NDArray[np.float64], pairs: NDArray[np.int32]) -> NDArray[np.float64]:
    scores = np.zeros(len(pairs))
    for start in range(0, len(pairs), 100_000):
        first, second = pairs[start : start + 100_000].T
        scores[start : start + 100_000] = np.sum(pooled[first] * pooled[second], -1)
    return scores


def rows(rounds: int) -> Iterator[Row]:
    test = make_test()
    pool = partial(pool_templates, test.embeddings, test.template, test.media, num_templates=NUM_TEMPLATES)
    pooled = pool()
    scores = pair_scores(pooled, test.pairs)
    np.testing.assert_allclose(pooled[:NUM_LOOPED], looped_pooling(test, NUM_LOOPED), atol=1e-6)  # float32 means
    np.testing.assert_allclose(scores[:300_000], looped_scores(pooled, test.pairs[:300_000]), atol=1e-12)
    share = NUM_LOOPED / NUM_TEMPLATES
    parts: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        "pooling": (pool, lambda: looped_pooling(test, NUM_LOOPED), share),
        "scores": (lambda: pair_scores(pooled, test.pairs), lambda: looped_scores(pooled, test.pairs), 1.0),
        "rates": (
            lambda: error_rates(error_tradeoff(scores, test.is_target), fars=TEMPLATE_FARS),
            lambda: roc_curve(test.is_target, scores),
            1.0,
        ),
    }
    for part, (ours, usual, share) in parts.items():
        times = in_turn({"ours": partial(cpu_seconds, ours), "usual": partial(cpu_seconds, usual)}, rounds)
        times["usual"] = [seconds / share for seconds in times["usual"]]
        speed, span = ratios(times["usual"], times["ours"])
        medians = {f"{name}_cpu_s": round(median_ms(seconds) / 1e3, 2) for name, seconds in times.items()}
        yield {"part": part, **medians, "speed": speed, "span": span}


def whole() -> None:
    """Print the CPU time of an evaluation without intervals, and its peak of memory above the test."""
    test = make_test()
    forget_peak()
    before = memory_mb("VmRSS")
    asked = Asked(fars=TEMPLATE_FARS, replicates=0)
    evaluate = partial(evaluate_templates, **vars(test), num_templates=NUM_TEMPLATES, flip="sum", asked=asked)
    seconds = cpu_seconds(evaluate)
    print(seconds, memory_mb("VmHWM") - before)


def whole_row() -> Row:
    command = [sys.executable, "-c", "import bench_templates; bench_templates.whole()"]
    printed = subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, memory = map(float, printed.split())
    return {"part": "whole", "cpu_s": round(seconds, 2), "peak_mb_above_test": round(memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured repetitions (default 3)")
    rounds = parser.parse_args().rounds

    def all_rows() -> Iterator[Row]:
        yield whole_row()
        yield from rows(rounds)

    where = {"rounds": rounds, "num_pairs": NUM_PAIRS, "num_images": NUM_IMAGES, "numpy": np.__version__}
    found: dict[str, Row] = {}
    for row in record("templates", all_rows(), **where):
        found[row["part"]] = row
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    speeds = ", ".join(f"{part} {found[part]['speed']:.1f}x" for part in ("pooling", "scores", "rates"))
    print(
        f"templates: {found['whole']['cpu_s']} s of one core (goal <= {GOALS['cpu_s']:g}), "
        f"{found['whole']['peak_mb_above_test']} MB above the test (goal <= {GOALS['peak_mb']}); "
        f"against the usual way {speeds}"
    )


if __name__ == "__main__":
    main()
