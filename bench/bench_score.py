"""How much faster than a call per trial is tools/score.py on a list of VoxCeleb1-H's size, and what do intervals cost?

The list is synthetic: 550,894 trials of 137,924 utterances and 1,254 speakers, 256 numbers an embedding. Parts:

- process: the whole `tools/score.py`, from the start of Python over trials and ark to the score file, error rates and
  DET plot, without and with intervals (1,000 replicates), against scoring trial by trial with scikit-learn's
  ``cosine_similarity`` on two vectors (WeSpeaker's way), or with numpy. The loops read, look up, subtract and compare;
  they are timed on the first trials, extrapolated to all, and spared imports, the ark and the metrics.
- metrics: EER, minDCF and TAR at four FARs, against np.sort of the scores, in processes of their own. With glibc's
  defaults arrays of this size go back to the system and come again page by page, which takes as long as the
  arithmetic; "memory kept" tells glibc to keep what was freed, for both.
- bootstrap: 1,000 replicates of all of these, and of the band of the DET plot.
- memory: metrics of 15.6 million trials (the size of IJB-C's list), in a process of its own.

CPU time of all threads, taken in turn after a warm-up, medians; the time on the clock stands beside it. Run it from
the repository root: python bench/bench_score.py [--rounds 5]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from measuring import ROOT, Row, cpu_seconds, forget_peak, in_turn, median_ms, memory_mb, ratios, record
from numpy.typing import NDArray

from wespeaker.data.trials import Trials, read_scores, write_kaldi_trials
from wespeaker.eval.embeddings import write_embeddings
from wespeaker.eval.metrics import error_tradeoff
from wespeaker.eval.results import Asked, error_rates, evaluate_list

NUM_TRIALS, NUM_UTTS, UTTS_PER_SPK, EMBED_DIM = 550_894, 137_924, 110, 256
NUM_MANY = 15_658_489  # trials of IJB-C's 1:1 list
GOALS = {"speed": 50.0, "process_mb": 1500, "sorts": 3.0, "bootstrap_s": 60.0, "many_mb": 3000}
Cosine = Callable[[NDArray[np.float32], NDArray[np.float32]], float]


@dataclass(frozen=True)
class Corpus:
    """Files of a synthetic list, and what is in them."""

    folder: Path
    embeddings: dict[str, NDArray[np.float32]]
    mean: NDArray[np.float32]

    @property
    def trials(self) -> Path:
        """Return the trial list."""
        return self.folder / "vox1_H_like.kaldi"


def make_corpus(folder: Path) -> Corpus:
    """Write a list, half of it target trials, the embeddings and their mean."""
    rng = np.random.default_rng(0)
    speakers = rng.standard_normal((NUM_UTTS // UTTS_PER_SPK + 1, EMBED_DIM), dtype=np.float32)
    vectors = rng.standard_normal((NUM_UTTS, EMBED_DIM), dtype=np.float32) * 2 + 1
    vectors += speakers[np.arange(NUM_UTTS) // UTTS_PER_SPK]
    utts = [f"id{10000 + i // UTTS_PER_SPK}/{i % UTTS_PER_SPK:011d}/00001.wav" for i in range(NUM_UTTS)]
    # As in the published lists: an utterance is enrolled in a row of trials, by turns target and nontarget.
    enroll = np.arange(NUM_TRIALS, dtype=np.int32) // 4 % NUM_UTTS
    test = rng.integers(0, NUM_UTTS, NUM_TRIALS, dtype=np.int32)
    same = np.minimum(enroll[::2] // UTTS_PER_SPK * UTTS_PER_SPK + test[::2] % UTTS_PER_SPK, NUM_UTTS - 1)
    test[::2] = same
    corpus = Corpus(folder, dict(zip(utts, vectors, strict=True)), vectors.mean(axis=0))
    write_kaldi_trials(corpus.trials, Trials(utts, enroll, test, enroll // UTTS_PER_SPK == test // UTTS_PER_SPK))
    write_embeddings(folder, corpus.embeddings.items(), expected=NUM_UTTS)
    return corpus


def numpy_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def sklearn_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    from sklearn.metrics.pairwise import cosine_similarity

    return float(cosine_similarity(a.reshape(1, -1), b.reshape(1, -1))[0, 0])


def one_by_one(corpus: Corpus, *, cosine: Cosine, num: int) -> list[float]:
    scores = []
    with open(corpus.trials) as file:
        for line in islice(file, num):
            enroll, test, _ = line.split()
            scores.append(cosine(corpus.embeddings[enroll] - corpus.mean, corpus.embeddings[test] - corpus.mean))
    return scores


def score_command(corpus: Corpus, replicates: int) -> list[str]:
    files = ["--embeddings", "xvector.scp", "--trials", corpus.trials.name, "--mean_vec", "mean_vec.npy"]
    return [
        sys.executable,
        str(ROOT / "tools" / "score.py"),
        *files,
        "--output_dir",
        "scores",
        "--replicates",
        str(replicates),
    ]


def child(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command; return its CPU seconds, seconds on the clock and peak memory in MB."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss * 1.024e-3


def process_rows(corpus: Corpus, rounds: int) -> Iterator[Row]:
    loops = {"scikit-learn, one by one": (sklearn_cosine, 1000), "numpy, one by one": (numpy_cosine, 20_000)}
    tools = {"tools/score.py --replicates 0": 0, "tools/score.py --replicates 1000": 1000}
    clock: dict[str, list[float]] = {name: [] for name in tools}
    peak: dict[str, list[float]] = {name: [] for name in tools}

    def loop(cosine: Cosine, num: int) -> float:
        return cpu_seconds(lambda: one_by_one(corpus, cosine=cosine, num=num)) * NUM_TRIALS / num

    def tool(name: str) -> float:
        seconds, on_clock, memory = child(score_command(corpus, tools[name]), corpus.folder)
        clock[name].append(on_clock)
        peak[name].append(memory)
        return seconds

    ways = {name: partial(loop, *what) for name, what in loops.items()} | {name: partial(tool, name) for name in tools}
    times = in_turn(ways, rounds)
    _, scores = read_scores(corpus.folder / "scores" / f"{corpus.trials.name}.score")
    for cosine, _ in loops.values():
        np.testing.assert_allclose(one_by_one(corpus, cosine=cosine, num=200), scores[:200], atol=1e-5)
    for name, seconds in times.items():
        row: Row = {"part": "process", "how": name, "cpu_s": round(statistics.median(seconds), 3)}
        if name in tools:
            row["clock_s"], row["peak_mb"] = round(statistics.median(clock[name][1:]), 2), round(max(peak[name]))
            row["speed"], row["span"] = ratios(times["scikit-learn, one by one"], seconds)
            row["speed_over_numpy"], _ = ratios(times["numpy, one by one"], seconds)
        else:
            row["extrapolated_from_trials"] = loops[name][1]
        yield row


def bootstrap_rows(corpus: Corpus, rounds: int) -> Iterator[Row]:
    trials, scores = read_scores(corpus.folder / "scores" / f"{corpus.trials.name}.score")

    def intervals(replicates: int) -> float:
        start = time.perf_counter()
        clock[replicates].append(cpu_seconds(lambda: evaluate_list(trials, scores, Asked(replicates=replicates))))
        return time.perf_counter() - start

    clock: dict[int, list[float]] = {0: [], 1000: []}
    times = in_turn({str(replicates): partial(intervals, replicates) for replicates in clock}, max(1, rounds // 2))
    yield {
        "part": "bootstrap",
        "replicates": 1000,
        "cpu_s": round(statistics.median(clock[1000][1:]) - statistics.median(clock[0][1:]), 2),
        "clock_s": round(statistics.median(times["1000"]) - statistics.median(times["0"]), 2),
    }


def metrics(folder: str, rounds: int) -> None:
    """Print the CPU times of error rates and of np.sort, in turn, as JSON."""
    trials, scores = read_scores(Path(folder, "scores", "vox1_H_like.kaldi.score"))
    ways = {
        "sort": partial(cpu_seconds, lambda: np.sort(scores)),
        "metrics": partial(cpu_seconds, lambda: error_rates(error_tradeoff(scores, trials.is_target))),
    }
    print(json.dumps(in_turn(ways, 10 * rounds)))


def metrics_rows(corpus: Corpus, rounds: int) -> Iterator[Row]:
    kept = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    for how, environment in (("metrics", {}), ("metrics, memory kept", kept)):
        times = json.loads(own_process(f"metrics({str(corpus.folder)!r}, {rounds})", environment))
        sorts, span = ratios(times["metrics"], times["sort"])
        medians = {f"{name}_ms": median_ms(seconds) for name, seconds in times.items()}
        yield {"part": "metrics", "how": how, **medians, "sorts": sorts, "span": span}


def own_process(call: str, environment: dict[str, str]) -> str:
    """Call a function of this file in a new process; return what it prints."""
    command = [sys.executable, "-c", f"import bench_score; bench_score.{call}"]
    environment = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def many() -> None:
    """Print the peak memory and the CPU time of the metrics of 15.6 million trials, scores and labels included."""
    rng = np.random.default_rng(0)
    is_target = np.zeros(NUM_MANY, dtype=np.bool_)
    is_target[:19_557] = True
    scores = rng.standard_normal(NUM_MANY)
    scores[is_target] += 4
    forget_peak()
    seconds = cpu_seconds(lambda: error_rates(error_tradeoff(scores, is_target)))
    print(memory_mb("VmHWM"), seconds)


def many_rows() -> Iterator[Row]:
    memory, seconds = map(float, own_process("many()", {}).split())
    yield {"part": "memory", "num_trials": NUM_MANY, "peak_mb": round(memory), "cpu_s": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured repetitions (default 5)")
    rounds = parser.parse_args().rounds

    def rows() -> Iterator[Row]:
        yield from many_rows()
        with tempfile.TemporaryDirectory() as folder:
            corpus = make_corpus(Path(folder))
            for part in (process_rows, metrics_rows, bootstrap_rows):
                yield from ({**row, "num_trials": NUM_TRIALS} for row in part(corpus, rounds))

    where = {"rounds": rounds, "num_utts": NUM_UTTS, "embed_dim": EMBED_DIM, "numpy": np.__version__}
    found: dict[str, Row] = {}
    for row in record("score", rows(), **where):
        found[row.get("how", row["part"])] = row
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    plain, full = found["tools/score.py --replicates 0"], found["tools/score.py --replicates 1000"]
    print(
        f"score: {plain['speed']:.0f}x without and {full['speed']:.0f}x with intervals (goal >= {GOALS['speed']:g}x "
        f"without, extrapolated), {full['peak_mb']} MB (goal <= {GOALS['process_mb']}); "
        f"metrics {found['metrics']['sorts']:.1f} sorts, "
        f"{found['metrics, memory kept']['sorts']:.1f} with memory kept (goal <= {GOALS['sorts']:g}); "
        f"bootstrap {found['bootstrap']['clock_s']} s (goal <= {GOALS['bootstrap_s']:g}); "
        f"15.6 M trials {found['memory']['peak_mb']} MB (goal <= {GOALS['many_mb']})"
    )


if __name__ == "__main__":
    main()
