"""What does an exact SGD step on a row-sparse gradient cost against fused dense SGD and making its dense gradient?

A weight of C x 256 with momentum, Nesterov's form and weight decay, of which 2 % or 20 % of the rows have a
gradient: RowSparseSGD on the sparse gradient against torch.optim.SGD, plain and fused, which first zero a dense
gradient and add the rows to it. One thread, one process, taken in turn after a warm-up; CPU time,
medians. Run it from the repository root: python bench/bench_optimizer.py [--num_classes 1000000] [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measuring import Row, cpu_seconds, in_turn, median_ms, ratios, record
from torch import Tensor

from wespeaker.losses import RowSparseSGD, row_sparse_sgd

EMBED_DIM = 256
SHARES = (0.02, 0.2)  # rows with a gradient: late in training, and early
OPTIONS = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
GOAL = 1.0  # times the fused SGD and its scatter
BASELINE = "fused"


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


def rows(num_classes: int, rounds: int, block_bytes: list[int]) -> Iterator[Row]:
    for share in SHARES:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(num_classes, EMBED_DIM))
        touched = torch.randperm(num_classes)[: round(share * num_classes)].sort().values
        values = 1e-3 * torch.randn(len(touched), EMBED_DIM)
        sparse = torch.sparse_coo_tensor(touched[None], values, weight.shape, check_invariants=False, is_coalesced=True)
        ways = steps(weight, sparse, block_bytes)
        times = in_turn({name: partial(cpu_seconds, step) for name, step in ways.items()}, rounds)
        sizes = {True: touched.nbytes + values.nbytes, False: weight.nbytes}
        for name in ways:
            ratio, span = ratios(times[name], times[BASELINE])
            yield {
                "share": share,
                "rows": len(touched),
                "way": name,
                "cpu_ms": median_ms(times[name]),
                "ratio": ratio,
                "span": span,
                "goal": GOAL if name.startswith("row") else None,
                "gradient_mb": round(sizes[name.startswith("row")] / 1e6),
            }


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
    reported = f"row-sparse {args.block_kib[0]} KiB"
    worst = 0.0
    measured = rows(args.num_classes, args.rounds, [kib << 10 for kib in args.block_kib])
    for row in record("optimizer", measured, torch=torch.__version__, **where):
        print(
            f"{args.num_classes:>8} rows, {row['share']:>4} touched  {row['way']:<22} {row['cpu_ms']:>7} ms"
            f"  {row['ratio']}x {row['span']}  gradient {row['gradient_mb']} MB",
            flush=True,
        )
        if row["way"] == reported:
            worst = max(worst, row["ratio"])
    print(f"optimizer: {worst}x (goal <= {GOAL:g}x of fused SGD with its gradient scatter)")


if __name__ == "__main__":
    main()
