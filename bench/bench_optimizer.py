"""What does an exact SGD step on a row-sparse gradient cost against fused dense SGD and making its dense gradient?

A weight of C x 256 with momentum, Nesterov's form and weight decay, of which 2 % or 20 % of the rows have a
gradient: RowSparseSGD on the sparse gradient against torch.optim.SGD, plain and fused, which first zero a dense
gradient and add the rows to it. One thread, one process, taken in turn after a warm-up; CPU time, median and
quartiles. Run it from the repository root: python bench/bench_optimizer.py [--num_classes 1000000] [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wespeaker.losses import RowSparseSGD, row_sparse_sgd  # noqa: E402

EMBED_DIM = 256
SHARES = (0.02, 0.2)  # rows with a gradient: late in training, and early
OPTIONS = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
GOAL = 1.0  # times the fused SGD and its scatter
BASELINE = "fused"


def cpu_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def steps(weight: torch.nn.Parameter, sparse: Tensor, block_bytes: list[int]) -> dict[str, Callable[[], None]]:
    """Return the ways to step ``weight`` (C, D), by name; they share weight and dense gradient, not the momentum."""
    dense = torch.zeros_like(weight)
    rows, values = sparse.indices()[0], sparse.values()

    def scatter() -> None:
        dense.zero_().index_add_(0, rows, values)

    def with_dense(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            scatter()
            weight.grad = dense
            optimizer.step()

        return step

    mine = RowSparseSGD([weight], **OPTIONS)

    shuffled = torch.randperm(len(rows))
    uncoalesced = torch.sparse_coo_tensor(rows[shuffled][None], values[shuffled], weight.shape, check_invariants=False)

    def with_sparse(size: int, grad: Tensor = sparse) -> Callable[[], None]:
        def step() -> None:
            row_sparse_sgd.CPU_BLOCK_BYTES = size
            weight.grad = grad
            mine.step()

        return step

    return {
        BASELINE: with_dense(torch.optim.SGD([weight], fused=True, **OPTIONS)),
        "plain": with_dense(torch.optim.SGD([weight], **OPTIONS)),
        "scatter alone": scatter,
        **{f"row-sparse {size >> 10} KiB": with_sparse(size) for size in block_bytes},
        "row-sparse uncoalesced": with_sparse(block_bytes[0], uncoalesced),
    }


def rows(num_classes: int, rounds: int, block_bytes: list[int]) -> Iterator[dict[str, object]]:
    for share in SHARES:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(num_classes, EMBED_DIM))
        touched = torch.randperm(num_classes)[: round(share * num_classes)].sort().values
        values = 1e-3 * torch.randn(len(touched), EMBED_DIM)
        sparse = torch.sparse_coo_tensor(touched[None], values, weight.shape, check_invariants=False, is_coalesced=True)
        ways = steps(weight, sparse, block_bytes)
        for step in ways.values():
            step()
        times = [{name: cpu_seconds(step) for name, step in ways.items()} for _ in range(rounds)]
        sizes = {True: touched.nbytes + values.nbytes, False: weight.nbytes}
        for name in ways:
            mine = [row[name] for row in times]
            ratios = [row[name] / row[BASELINE] for row in times]
            low, median, high = statistics.quantiles(ratios, n=4)
            fast, _, slow = statistics.quantiles(mine, n=4)
            yield {
                "share": share,
                "rows": len(touched),
                "way": name,
                "cpu_ms": round(1e3 * statistics.median(mine), 1),
                "cpu_ms_quartiles": [round(1e3 * fast, 1), round(1e3 * slow, 1)],
                "ratio": round(median, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "goal": GOAL if name.startswith("row") else None,
                "gradient_mb": round(sizes[name.startswith("row")] / 1e6),
            }


def revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_classes", type=int, default=200_000, help="rows of the weight (default 200000)")
    parser.add_argument("--rounds", type=int, default=15, help="measured steps of each way (default 15)")
    parser.add_argument(
        "--block_kib", type=int, nargs="+", default=[row_sparse_sgd.CPU_BLOCK_BYTES >> 10],
        help="sizes of the scratch block to try; the first is the one reported (default: the package's)",
    )  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = {"num_classes": args.num_classes, "embed_dim": EMBED_DIM, **OPTIONS, "rounds": args.rounds}
    where |= {"torch": torch.__version__, "python": platform.python_version(), "threads": 1, "revision": revision()}
    results = ROOT / "bench" / "results" / "optimizer.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    reported = f"row-sparse {args.block_kib[0]} KiB"
    worst = 0.0
    with results.open("a") as file:
        for row in rows(args.num_classes, args.rounds, [kib << 10 for kib in args.block_kib]):
            file.write(json.dumps(row | where) + "\n")
            print(
                f"{args.num_classes:>8} rows, {row['share']:>4} touched  {row['way']:<22} {row['cpu_ms']:>7} ms"
                f" {row['cpu_ms_quartiles']}  {row['ratio']}x {row['ratio_quartiles']}"
                f"  gradient {row['gradient_mb']} MB"
            )
            if row["way"] == reported:
                worst = max(worst, float(str(row["ratio"])))
    print(f"optimizer: {worst}x (goal <= {GOAL:g}x of fused SGD with its gradient scatter)")


if __name__ == "__main__":
    main()
