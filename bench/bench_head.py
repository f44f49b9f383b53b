"""How much does the dense exact Q-Margin head cost against ArcFace's head, forward and backward?

Both heads of this package, on one thread, in one process, taken in turn after a warm-up; CPU time of the
process, median and quartiles. The ArcFace head makes no one-hot and no copy of the weight, so it is a hard
baseline. Run it from the repository root: python bench/bench_head.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wespeaker.losses import build_head  # noqa: E402

BATCH, EMBED_DIM = 128, 256
BASELINE = {"project_type": "arc_margin", "scale": 32, "margin": 0.2}
# The paper's speaker settings, and the goal of each: time at most this multiple of the baseline's.
CANDIDATES = {
    1.35: {"project_type": "q_margin", "alpha": 1.5, "scale": 10, "margin": 0.1},
    1.7: {"project_type": "q_margin", "alpha": 1.75, "scale": 5, "margin": 0.1},
}


def random_init(num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes, embeddings and labels before training: all directions alike."""
    weight, embeddings = torch.randn(num_classes, EMBED_DIM), torch.randn(BATCH, EMBED_DIM)
    return weight, embeddings, torch.randint(num_classes, (BATCH,))


def trained(num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Late in training: negatives' cosines spread by about 0.09 (120 of 256 directions matter), targets' near 0.7."""
    spectrum = torch.ones(EMBED_DIM).index_fill_(0, torch.arange(120, EMBED_DIM), 0.2)
    weight = torch.randn(num_classes, EMBED_DIM) * spectrum
    labels = torch.randint(num_classes, (BATCH,))
    return weight, weight[labels] + torch.randn(BATCH, EMBED_DIM) * spectrum, labels


def step_time(head: torch.nn.Module, embeddings: Tensor, labels: Tensor) -> float:
    """Return CPU seconds of one forward and backward."""
    head.zero_grad(set_to_none=True)
    leaf = embeddings.clone().requires_grad_()
    start = time.process_time()
    head(leaf, labels).loss.backward()
    return time.process_time() - start


def saved_bytes(head: torch.nn.Module, embeddings: Tensor, labels: Tensor) -> int:
    """Return the bytes of the tensors that the forward keeps for the backward, parameters not counted."""
    seen = {p.data_ptr(): 0 for p in head.parameters()}

    def note(x: Tensor) -> Tensor:
        seen.setdefault(x.data_ptr(), x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        kept = head(embeddings.clone().requires_grad_(), labels)  # alive until counted
    del kept
    return sum(seen.values())


def rows(rounds: int) -> Iterator[dict[str, object]]:
    for num_classes in (5994, 17982):
        for regime in (trained, random_init):
            torch.manual_seed(0)
            weight, embeddings, labels = regime(num_classes)
            types = (BASELINE, *CANDIDATES.values())
            heads = [build_head(a, embed_dim=EMBED_DIM, num_classes=num_classes) for a in types]
            for head in heads:
                with torch.no_grad():
                    head.weight.copy_(weight)
                for _ in range(3):
                    step_time(head, embeddings, labels)
            times = [[step_time(head, embeddings, labels) for head in heads] for _ in range(rounds)]
            base = [row[0] for row in times]
            for i, (goal, args) in enumerate(((None, BASELINE), *CANDIDATES.items())):
                mine = [row[i] for row in times]
                ratios = [a / b for a, b in zip(mine, base, strict=True)]
                low, _, high = statistics.quantiles(ratios, n=4)
                with torch.no_grad():
                    support = heads[i](embeddings, labels).support.double()
                yield {
                    **args,
                    "num_classes": num_classes,
                    "regime": regime.__name__,
                    "cpu_ms": round(1e3 * statistics.median(mine), 2),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_quartiles": [round(low, 3), round(high, 3)],
                    "goal": goal,
                    "saved_mb": round(saved_bytes(heads[i], embeddings, labels) / 1e6, 1),
                    "support_mean": round(support.mean().item(), 1),
                    "support_max": int(support.max()),
                }


def revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured steps of each head (default 15)")
    torch.set_num_threads(1)
    where = {"torch": torch.__version__, "threads": 1, "revision": revision()}
    where |= {"batch": BATCH, "embed_dim": EMBED_DIM}
    results = ROOT / "bench" / "results" / "head.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    worst: dict[float, float] = {}
    with results.open("a") as file:
        for row in rows(parser.parse_args().rounds):
            file.write(json.dumps(row | where) + "\n")
            goal = row["goal"]
            print(
                f"{row['num_classes']:>6} {row['regime']:<12} {row['project_type']:<10} alpha"
                f" {row.get('alpha', 1.0):<5} {row['cpu_ms']:>7} ms  {row['ratio']}x {row['ratio_quartiles']}"
                f"  saved {row['saved_mb']} MB  support {row['support_mean']} (max {row['support_max']})"
            )
            if isinstance(goal, float):
                worst[goal] = max(worst.get(goal, 0.0), float(str(row["ratio"])))
    by_alpha = zip(worst.items(), CANDIDATES.values(), strict=True)
    print("head: " + ", ".join(f"{r}x (goal <= {goal}x at alpha {a['alpha']})" for (goal, r), a in by_alpha))


if __name__ == "__main__":
    main()
