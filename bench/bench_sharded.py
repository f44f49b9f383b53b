"""What does a head take whose classes are split over processes: time, memory, traffic?

Two processes of one thread each (gloo), B = 128 of both together, D = 512: forward and backward of the Q-Margin head
against PartialFC's algorithm at sampling rate 1 (baselines.py), both with the same classes on the same process.
Run from the repository root, one part or both:

    python bench/bench_sharded.py                  # both, at C = 100,000 and 400,000; 6 GB, fifteen minutes
    python bench/bench_sharded.py time             # the heads in turn, all in one process group
    python bench/bench_sharded.py memory           # a fresh process group for each head, and what it sends
    python bench/bench_sharded.py --table          # no run: bench/results/sharded.jsonl as a table

time: both processes start a step together; it takes until the slower one is done (wall), and what both computed (cpu,
the sum). Medians of the ratios round by round. The allocator keeps its memory, as in bench_head.py.

memory: of one process, the larger of the two: its prototypes, and the peak of its memory above them. `replicated` has
all prototypes on both processes, each works on its own rows, and their gradients are averaged as
DistributedDataParallel does. Sent: what a process sends where collectives go round a ring, which for W processes is
2 (W-1)/W of a tensor to be reduced for all, (W-1)/W of one to be reduced and scattered, W-1 times one to be gathered.

The inputs, `trained` and `random`, are those of bench_head.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from baselines import partial_fc
from bench_head import FACE, inputs
from measuring import ROOT, Row, forget_peak, in_turn, keep_memory, memory_mb, ratios, record, return_memory
from torch import Tensor, distributed
from torch import multiprocessing as mp

from wespeaker.losses import HeadOutput, Shards, build_head

WORLD_SIZE, EMBED_DIM, SIZES = 2, 512, (100_000, 400_000)
Q_MARGIN = {"project_type": "q_margin", "alpha": FACE[0], "scale": FACE[1], "margin": FACE[2]}
STREAM = {**Q_MARGIN, "form": "stream", "screen": "none"}

# Our heads, by name.
OURS = {
    "q_margin": {**STREAM, "weight_grad": "sparse"},
    "q_margin, dense gradient": STREAM,
    "q_margin, auto": {**Q_MARGIN, "weight_grad": "sparse"},
    "arc_margin": {"project_type": "arc_margin", "scale": FACE[1], "margin": FACE[2]},
}
BASELINE, REPLICATED = "partial_fc", "replicated"
GOAL = 0.6  # of the baseline's time, trained


class Case:
    """A head on fixed inputs, those of this process: weight (C', D), embeddings (b, D), labels (b,)."""

    def __init__(self, variant: str, shards: Shards, weight: Tensor, embeddings: Tensor, labels: Tensor) -> None:
        self.weight, self.embeddings, self.labels = torch.nn.Parameter(weight), embeddings, labels
        self.averaged = variant == REPLICATED
        self.out: HeadOutput | None = None
        if variant == BASELINE:
            self.loss: Callable[[Tensor], Tensor] = lambda e: partial_fc(e, self.weight, labels, shards.first)
            return
        args, dim = OURS.get(variant, STREAM), weight.shape[1]
        with torch.device("meta"):
            self.head = build_head(args, embed_dim=dim, num_classes=shards.num_classes, shards=shards)
        self.head.weight = self.weight
        self.loss = self._own_loss

    def _own_loss(self, embeddings: Tensor) -> Tensor:
        self.out = self.head(embeddings, self.labels)
        return self.out.loss

    def step(self) -> None:
        """Go forward and backward; the gradients are left."""
        self.weight.grad = None
        leaf = self.embeddings.clone().requires_grad_()
        self.loss(leaf).backward()
        if self.averaged:
            distributed.all_reduce(self.weight.grad)
            self.weight.grad /= distributed.get_world_size()

    def timed(self) -> tuple[float, float]:
        """Take a step from when all processes are ready; return the seconds of the slowest, and the CPU seconds of all.

        The gradient is let go, so that two cases never hold one each.
        """
        distributed.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        self.step()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        self.weight.grad = None
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, (wall, cpu))
        return max(wall for wall, _ in found), sum(cpu for _, cpu in found)

    def seen(self) -> Row:
        """Say what our head found, of the last step."""
        if self.out is None:
            return {}
        return {"path": self.out.path, "support_mean": round(self.out.support.double().mean().item(), 1)}


def part_of(regime: str, num_classes: int, shards: Shards, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prototypes of the shards, and a process's rows of embeddings and labels."""
    weight, embeddings, labels = inputs(regime, num_classes, EMBED_DIM)
    if shards.split:
        weight = weight[shards.first : shards.last].clone()
    rows = slice(*(len(labels) * at // WORLD_SIZE for at in (rank, rank + 1)))
    return weight, embeddings[rows].clone(), labels[rows]


class Traffic:
    """Count the collectives in a `with` block and the bytes that this process sends in a ring."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.bytes = 0.0
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Traffic:
        others = distributed.get_world_size() - 1
        share = others / (others + 1)
        sent: dict[str, Callable[..., float]] = {
            "all_reduce": lambda x, *_: 2.0 * share * x.nbytes,
            "all_gather": lambda _, x: others * x.nbytes,
            "reduce_scatter": lambda _, parts: share * sum(part.nbytes for part in parts),
        }
        for name, size in sent.items():
            self._real[name] = getattr(distributed, name)
            setattr(distributed, name, self._counting(name, size))
        return self

    def _counting(self, name: str, size: Callable[..., float]) -> Callable[..., Any]:
        def collective(*args: Any, **keys: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            self.bytes += size(*args)
            return self._real[name](*args, **keys)

        return collective

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(distributed, name, real)


def times(rank: int, num_classes: int, regime: str, rounds: int) -> list[Row]:
    """Time all heads in turn, on the same shards."""
    keep_memory()
    shards = Shards(num_classes, rank, WORLD_SIZE)
    data = part_of(regime, num_classes, shards, rank)
    cases = {name: Case(name, shards, *data) for name in (BASELINE, *OURS)}
    found = in_turn({name: case.timed for name, case in cases.items()}, rounds)
    walls = {name: [wall for wall, _ in pairs] for name, pairs in found.items()}
    cpus = {name: [cpu for _, cpu in pairs] for name, pairs in found.items()}
    rows = []
    for name, case in cases.items():
        (wall, wall_span), (cpu, cpu_span) = (ratios(kind[name], kind[BASELINE]) for kind in (walls, cpus))
        against_arc, arc_span = ratios(walls[name], walls["arc_margin"])
        rows.append({
            "variant": name,
            "wall_ms": round(1e3 * statistics.median(walls[name]), 1), "ratio": wall, "span": wall_span,
            "cpu_ms": round(1e3 * statistics.median(cpus[name]), 1), "cpu_ratio": cpu, "cpu_span": cpu_span,
            "of_arc_margin": against_arc, "arc_span": arc_span,
            "goal": GOAL if name == "q_margin" and regime == "trained" else None, **case.seen(),
        })  # fmt: skip
    return rows


def memory(rank: int, num_classes: int, regime: str, variant: str) -> list[Row]:
    """Measure one head's memory and traffic; runs in fresh processes."""
    return_memory()

    def case(size: int) -> Case:
        shards = Shards(size) if variant == REPLICATED else Shards(size, rank, WORLD_SIZE)
        return Case(variant, shards, *part_of(regime, size, shards, rank))

    case(10_000).step()  # libraries load and make their buffers
    measured = case(num_classes)
    forget_peak()
    before = memory_mb("VmRSS")
    with Traffic() as traffic:
        measured.step()
    extra: list[Any] = [None] * WORLD_SIZE
    distributed.all_gather_object(extra, memory_mb("VmHWM") - before)
    weight_mb = 1e-6 * measured.weight.nbytes
    return [{
        "variant": variant, "weight_mb": round(weight_mb, 1), "extra_mb": round(max(extra), 1),
        "total_mb": round(weight_mb + max(extra), 1), "sent_kb": round(1e-3 * traffic.bytes, 1), **traffic.calls,
        **measured.seen(),
    }]  # fmt: skip


def worker(rank: int, folder: str, work: Callable[..., list[Row]], args: tuple[Any, ...]) -> None:
    """Be one of the processes; the first writes the rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORLD_SIZE)
    rows = work(rank, *args)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def together(work: Callable[..., list[Row]], *args: Any) -> list[Row]:
    """Run a function on fresh processes that form a group, and return the rows of the first."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder, work, args), nprocs=WORLD_SIZE)
        return json.loads((Path(folder) / "rows.json").read_text())


def rows_of(part: str, rounds: int) -> Iterator[Row]:
    """Yield the rows of a part."""
    for num_classes in SIZES:
        for regime in ("trained", "random"):
            where = {"part": part, "num_classes": num_classes, "embed_dim": EMBED_DIM, "batch": 128, "regime": regime}
            heads = (BASELINE, *OURS, REPLICATED) if part == "memory" else ()
            found = chain.from_iterable(together(memory, num_classes, regime, name) for name in heads)
            for row in together(times, num_classes, regime, rounds) if part == "time" else found:
                yield where | row | {"load": round(os.getloadavg()[0], 1)}


def cells(row: Row) -> list[object]:
    """Return what a table shows of a row."""
    first = [f"{row['num_classes']:,}", row["regime"], row["variant"]]
    if row["part"] == "time":
        spans = {key: "-".join(map(str, row[key])) for key in ("span", "cpu_span")}
        return [*first, row["wall_ms"], f"{row['ratio']} ({spans['span']})", row["cpu_ms"],
                f"{row['cpu_ratio']} ({spans['cpu_span']})", row["of_arc_margin"],
                f"≤ {row['goal']}" if row["goal"] else "", row.get("support_mean", "")]  # fmt: skip
    calls = [row.get(name, 0) for name in ("all_gather", "all_reduce", "reduce_scatter")]
    return [*first, row["weight_mb"], row["extra_mb"], row["total_mb"], row["sent_kb"], *calls]


HEADINGS = {
    "time": "C | inputs | head | wall ms | of partial_fc's | CPU ms | of partial_fc's | wall, of arc_margin's | goal"
    " | support",
    "memory": "C | inputs | head | prototypes, MB | above them, MB | together, MB | sent, KB | gathers | reductions"
    " | scatters",
}


def table() -> None:
    """Print the latest row of each case as Markdown."""
    latest: dict[tuple[object, ...], Row] = {}
    for line in (ROOT / "bench" / "results" / "sharded.jsonl").read_text().splitlines():
        row = json.loads(line)
        latest[tuple(row[key] for key in ("part", "num_classes", "regime", "variant"))] = row
    for part, headings in HEADINGS.items():
        print(f"\n### sharded: {part}\n\n| {headings} |\n{'|---' * len(headings.split('|'))}|")
        for row in latest.values():
            if row["part"] == part:
                print("| " + " | ".join(map(str, cells(row))) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="time or memory (default: both)")
    parser.add_argument("--rounds", type=int, default=11, help="measured steps of each head (default 11)")
    parser.add_argument("--table", action="store_true", help="print the latest results as Markdown and leave")
    args = parser.parse_args()
    if unknown := set(args.parts) - HEADINGS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(HEADINGS)}")
    if args.table:
        return table()
    worst = 0.0
    for part in args.parts or HEADINGS:
        print(HEADINGS[part])
        for row in record("sharded", rows_of(part, args.rounds), torch=torch.__version__, processes=WORLD_SIZE):
            print(" | ".join(map(str, cells(row))), flush=True)
            worst = max(worst, row["ratio"] if row.get("goal") else 0.0)
    if worst:
        print(f"sharded: {worst}x of partial_fc's time (goal <= {GOAL}x)")


if __name__ == "__main__":
    main()
