"""How long does it take to open shards of VoxCeleb2's size, and how much memory do all processes take together?

A synthetic index of 1,092,009 utterances of 5,994 speakers in 1,093 shards; the tar files are sparse, without audio.
A fresh process opens the list as training does (the files are in the page cache: one warm-up), forks 4 workers, and
each of them reads 10,000 entries at random. Memory is what the table adds to the PSS of main and workers, which counts
pages that they share once. The baseline keeps a Python object for each utterance, in a list. CPU time and wall time,
median of the rounds. Linux only. Run it from the repository root: python bench/bench_index.py [--rounds 3]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wespeaker.data.audio import AudioSource  # noqa: E402
from wespeaker.data.riff import Pcm16  # noqa: E402
from wespeaker.data.shards import ShardIndex, read_shard_list, save_index  # noqa: E402
from wespeaker.data.utterances import TableBuilder, Utterance  # noqa: E402

NUM_UTTS, NUM_SPKS, UTTS_PER_SHARD = 1_092_009, 5_994, 1000
NUM_WORKERS, ENTRIES = 4, 10_000
GOAL_MB, GOAL_SEC = 200.0, 3.0


def write_corpus(folder: Path) -> Path:
    """Write the indexes and sparse tar files; return the shard.list."""
    rng = np.random.default_rng(0)
    alphabet = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
    videos = ["".join(letters) for letters in alphabet[rng.integers(len(alphabet), size=(145_569, 11))]]
    order = rng.permutation(NUM_UTTS)
    samples = rng.integers(4 * 16000, 12 * 16000, NUM_UTTS)
    shards = []
    for first in range(0, NUM_UTTS, UTTS_PER_SHARD):
        shard, builder, offset = folder / f"shards_{len(shards):09d}.tar", TableBuilder(), 0
        for i in order[first : first + UTTS_PER_SHARD]:
            spk = f"id{i % NUM_SPKS:05d}"
            size = 44 + 2 * int(samples[i])
            source = AudioSource(str(shard), offset + 1536, size, Pcm16(44, int(samples[i])))
            key = f"{spk}/{videos[i // 8 % len(videos)]}/{i:05d}.wav"
            builder.add(Utterance(key, spk, source, (int(samples[i]), 16000)))
            offset += 1536 + -(-size // 512) * 512
        with open(shard, "wb") as file:
            file.truncate(offset + 1024)
        save_index(shard, ShardIndex(builder.table()))
        shards.append(shard)
    path = folder / "shard.list"
    path.write_text("".join(f"{shard}\n" for shard in shards))
    return path


class _Nothing(Sequence[Utterance]):
    """Stands for a table that takes no memory."""

    def __len__(self) -> int:
        return NUM_UTTS

    def __getitem__(self, index: int) -> Utterance:  # type: ignore[override]
        return Utterance("", "", AudioSource(""), (0, 1))


def pss_mb(pid: int | str) -> float:
    """Return the proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss in smaps_rollup")


def work(utterances: Sequence[Utterance], seed: int, pipe: Connection) -> None:
    """Read entries, say so, and stay until told to go."""
    seconds = sum(utterances[int(i)].seconds for i in np.random.default_rng(seed).integers(NUM_UTTS, size=ENTRIES))
    pipe.send(seconds)
    pipe.recv()


def total_pss_mb(utterances: Sequence[Utterance]) -> float:
    """Return the PSS of this process and of forked workers that have read entries."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(NUM_WORKERS)]
    workers = [context.Process(target=work, args=(utterances, n, pipe[1])) for n, pipe in enumerate(pipes)]
    for worker in workers:
        worker.start()
    for pipe, _ in pipes:
        pipe.recv()
    total = sum(pss_mb(worker.pid or "") for worker in workers) + pss_mb("self")
    for pipe, _ in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join()
    return total


def measure(shard_list: Path, how: str) -> dict[str, float]:
    """Open in this process and return seconds and megabytes."""
    before = total_pss_mb(_Nothing())
    wall, cpu = time.perf_counter(), time.process_time()
    utterances: Sequence[Utterance] = read_shard_list(shard_list)
    if how == "objects":
        utterances = list(utterances)
    row = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    assert len(utterances) == NUM_UTTS
    return row | {"mb": total_pss_mb(utterances) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured repetitions (default 3)")
    parser.add_argument("--measure", nargs=2, metavar=("LIST", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    found: dict[str, list[dict[str, float]]] = {"table": [], "objects": []}
    with tempfile.TemporaryDirectory() as folder:
        shard_list = write_corpus(Path(folder))
        for number in range(args.rounds + 1):
            for how, rows in found.items():
                command = [sys.executable, __file__, "--measure", str(shard_list), how]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                if number > 0:  # the first is the warm-up
                    rows.append(json.loads(done.stdout))
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "none"
    where = {"numpy": np.__version__, "threads": 1, "revision": revision, "rounds": args.rounds}
    where |= {"num_utts": NUM_UTTS, "utts_per_shard": UTTS_PER_SHARD, "workers": NUM_WORKERS, "entries_each": ENTRIES}
    results = ROOT / "bench" / "results" / "index.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    medians = {}
    with results.open("a") as file:
        for how, rows in found.items():
            medians[how] = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            row = {"how": how} | {name: round(value, 2) for name, value in medians[how].items()}
            file.write(json.dumps(row | where) + "\n")
            print(", ".join(f"{key} {value}" for key, value in row.items()))
    ratio = medians["objects"]["mb"] / medians["table"]["mb"]
    print(
        f"index: {medians['table']['wall_s']:.2f} s (goal <= {GOAL_SEC:g}), {medians['table']['mb']:.0f} MB in all "
        f"processes (goal <= {GOAL_MB:g}), {ratio:.1f}x less than objects"
    )


if __name__ == "__main__":
    main()
