"""How far are the numbers of 1, 2 and 3 processes, in float32, from those of one process in float64?

C = 10,007 classes (uneven on 2 and 3), D = 64, B = 48, every form that a loss has, at the scales of the paper. The
reference is the dense α-divergence of all classes in float64, solved by bisection here, not by the package.
Run from the repository root; a minute:

    python bench/bench_agreement.py            # appends to bench/results/agreement.jsonl, prints a table

loss: largest |difference| of a sample's. posterior: of the label's. The gradients' differences are relative, in the
Frobenius norm: of all embeddings, and of the prototypes of all processes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_head import inputs
from measuring import Row, record
from torch import Tensor, distributed
from torch import multiprocessing as mp
from torch.nn import functional as F

from wespeaker.losses import Shards, build_head

CLASSES, DIM, BATCH = 10_007, 64, 48
MARGIN = 0.1
SETTINGS = ((1.0, 32.0), (1.05, 64.0), (1.25, 32.0), (1.5, 10.0), (1.75, 5.0), (2.0, 5.0))  # α and s


def variants() -> list[tuple[str, float, float]]:
    """Return the forms, α and s to compare."""
    return [
        (form, *setting) for setting in SETTINGS for form in ("dense", "stream") if setting[0] > 1 or form == "dense"
    ]


def reference(alpha: float, scale: float) -> dict[str, Tensor]:
    """Return losses, the labels' posteriors and gradients in float64, τ by bisection and the loss by eqs. 5 and 6."""
    weight, embeddings, labels = (x.double() if x.is_floating_point() else x for x in inputs("trained", CLASSES, DIM))
    embeddings, labels = embeddings[:BATCH].requires_grad_(), labels[:BATCH]
    weight.requires_grad_()
    theta = scale * F.linear(F.normalize(embeddings), F.normalize(weight))
    own = F.one_hot(labels, CLASSES).double()
    q = torch.exp(-scale * MARGIN * own)
    if alpha == 1.0:
        loss = F.cross_entropy(theta + q.log(), labels, reduction="none")
        p = (theta + q.log()).softmax(1).detach()
    else:
        p = _posterior(theta.detach(), q, alpha)

        def divergence(p: Tensor) -> Tensor:
            return ((p.pow(alpha) * q.pow(1 - alpha)) - q - alpha * (p - q)).sum(1) / (alpha * (alpha - 1))

        loss = (p * theta).sum(1) - divergence(p) + divergence(own) - (own * theta).sum(1)  # p is at its optimum
    loss.mean().backward()
    assert embeddings.grad is not None
    assert weight.grad is not None
    return {
        "loss": loss.detach(),
        "posterior": (p * own).sum(1),
        "of_embeddings": embeddings.grad,
        "of_weight": weight.grad,
    }


def _posterior(theta: Tensor, q: Tensor, alpha: float) -> Tensor:
    b = alpha - 1.0
    low = (theta - (q.pow(-b) - 1) / b).amax(1, keepdim=True)
    high = theta.amax(1, keepdim=True) - (q.sum(1, keepdim=True).pow(-b) - 1) / b
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = (q * (1 + b * (theta - middle)).clamp(min=0).pow(1 / b)).sum(1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    p = q * (1 + b * (theta - low)).clamp(min=0).pow(1 / b)
    return p / p.sum(1, keepdim=True)


def worker(rank: int, world_size: int, folder: str) -> None:
    """Be one of the processes; leave what its rows and classes gave."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    shards = Shards.of_all_ranks(CLASSES)
    weight, embeddings, labels = inputs("trained", CLASSES, DIM)
    rows = slice(*(BATCH * at // world_size for at in (rank, rank + 1)))
    found = {}
    for form, alpha, scale in variants():
        args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "margin": MARGIN, "form": form}
        head = build_head(args, embed_dim=DIM, num_classes=CLASSES, shards=shards)
        with torch.no_grad():
            head.weight.copy_(weight[shards.first : shards.last])
        mine = embeddings[rows].clone().requires_grad_()
        out = head(mine, labels[rows])
        out.loss.backward()
        assert mine.grad is not None
        assert head.weight.grad is not None
        found[form, alpha] = {
            "loss": out.per_sample.detach(),
            "posterior": out.target_posterior,
            "of_embeddings": mine.grad / world_size,  # what DistributedDataParallel's mean makes of it
            "of_weight": head.weight.grad,
        }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def rows() -> Iterator[Row]:
    """Yield a row for each form and number of processes."""
    references = {alpha: reference(alpha, scale) for alpha, scale in SETTINGS}
    found = {}
    for world_size in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(worker, (world_size, folder), nprocs=world_size)
            found[world_size] = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]
    for form, alpha, scale in variants():
        for world_size, parts in found.items():
            row: Row = {"alpha": alpha, "scale": scale, "form": form, "processes": world_size}
            for name, exact in references[alpha].items():
                off = torch.cat([part[form, alpha][name] for part in parts]).double() - exact
                distance = off.norm() / exact.norm() if name.startswith("of_") else off.abs().max()
                row[name] = float(f"{distance.item():.1e}")
            yield row


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("α | s | form | processes | loss | posterior | gradient of embeddings | of prototypes")
    worst = 0.0
    for row in record("agreement", rows(), torch=torch.__version__):
        print(" | ".join(map(str, row.values())), flush=True)
        worst = max(worst, row["of_embeddings"], row["of_weight"])
    assert math.isfinite(worst)
    print(f"agreement: gradients within {worst:.1e} of float64")


if __name__ == "__main__":
    main()
