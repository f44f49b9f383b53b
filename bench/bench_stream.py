"""How much faster is the exact streaming Q-Margin head than a hand-optimised dense ArcFace head?

Forward and backward, one thread, variants in one process taken in turn after a warm-up; CPU time of the process,
medians. The baselines are written here:

    arc_opt       ArcFace with all tricks: one B × C buffer, chunked products, no copy of the weight, no second pass
    arc_autograd  ArcFace as usually written: F.normalize, F.linear, F.cross_entropy
    paper         the α-divergence on the 5 % largest logits, 30 bisections, dense backward
    entmax        entmax's entmax_bisect_loss on all logits (30 bisections, its default of 50 is slower)

Run from the repository root:

    python bench/bench_stream.py                   # C = 17,982 and 100,000, a few minutes
    python bench/bench_stream.py --full            # and C = 1,000,000, D = 512, with peak memory; 12 GB, half an hour
    python bench/bench_stream.py --density         # `auto` against arc_opt from 0.5 % to all classes active
    python bench/bench_stream.py --memory          # peak memory at C = 100,000, a fresh process each
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wespeaker.losses import build_head  # noqa: E402

SPEAKER = [(1.5, 10.0, 0.1), (1.75, 5.0, 0.1), (2.0, 5.0, 0.1)]  # alpha, scale, margin
FACE = (1.25, 32.0, 0.2)
GOALS = {  # (C, D, screen): times faster than arc_opt, trained and random
    (17_982, 256, "none"): (1.9, 1.5),
    (100_000, 512, "none"): (2.6, 1.8),
    (1_000_000, 512, "none"): (3.0, 3.0),
    (1_000_000, 512, "bf16"): (5.0, 4.0),
}
CHUNK = 2048
Step = Callable[[], Any]


# ---- inputs ----


def inputs(regime: str, num_classes: int, dim: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return prototypes, embeddings and labels.

    random: all directions alike, cosines spread by 1/sqrt(D). trained: cosines of negatives spread by 0.08, for
    1/0.08² = 156 of the directions matter; of targets 0.65 ± 0.08; lengths of prototypes spread by 15 %.
    """
    torch.manual_seed(0)
    weight, embeddings = torch.randn(num_classes, dim), torch.randn(batch, dim)
    labels = torch.randint(num_classes, (batch,))
    if regime == "random":
        return weight, embeddings, labels
    spectrum = torch.ones(dim).index_fill_(0, torch.arange(min(156, dim), dim), 0.1)
    for rows in weight.split(65_536):
        rows.mul_(spectrum).mul_(torch.exp(0.15 * torch.randn(len(rows), 1)))
    own = F.normalize(weight[labels])
    noise = embeddings * spectrum
    noise = F.normalize(noise - (noise * own).sum(1, keepdim=True) * own)
    cosine = (0.65 + 0.08 * torch.randn(batch, 1)).clamp(-0.5, 0.95)
    return weight, 20.0 * (cosine * own + (1.0 - cosine**2).sqrt() * noise), labels


# ---- baselines ----


class _ArcOpt(torch.autograd.Function):
    """Logits are at most s, so softmax needs no maximum: each tile is scaled, exponentiated and summed in cache.

    The radial part of the prototypes' gradient is that of the raw one along the prototype, so the logits
    themselves need not be kept.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
        inverse_e = embeddings.norm(dim=1, keepdim=True).reciprocal()
        directions = embeddings * inverse_e * scale
        transposed = directions.T.contiguous()
        p = weight.new_empty(len(weight), len(labels))  # class-major
        inverse = weight.new_empty(len(weight))
        rows = torch.arange(len(labels))
        own = weight[labels]
        cosine = ((directions * own).sum(1) / own.norm(dim=1) / scale).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = cosine.acos() + margin
        target = scale * angle.cos()
        total = torch.zeros(len(labels))
        for first in range(0, len(weight), CHUNK):
            chunk, tile = weight[first : first + CHUNK], p[first : first + CHUNK]
            norm = torch.linalg.vector_norm(chunk, dim=1).reciprocal_()
            inverse[first : first + CHUNK] = norm
            torch.mm(chunk, transposed, out=tile).mul_(norm.unsqueeze(1)).sub_(scale).exp_()
            total += tile.sum(0)
        own_p = (target - scale).exp()
        total += own_p - p[labels, rows]
        p[labels, rows] = own_p
        slope = angle.sin() / (1.0 - cosine**2).sqrt()
        ctx.save_for_backward(embeddings, weight, labels, inverse_e, inverse, directions, p, total, slope)
        ctx.scale = scale
        return (total.log() + scale - target).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight, labels, inverse_e, inverse, directions, p, total, slope = ctx.saved_tensors
        rows = torch.arange(len(labels))
        own = (p[labels, rows] / total - 1.0) * slope * total
        p[labels, rows] = own
        factor = grads[0] / len(labels) / total
        grad_weight, grad = torch.empty_like(weight), torch.zeros_like(embeddings)
        for first in range(0, len(weight), CHUNK):
            last = first + CHUNK
            chunk, norm = weight[first:last], inverse[first:last]
            g = p[first:last].mul_(factor).mul_(norm.unsqueeze(1))
            grad.addmm_(g.T, chunk)
            raw = torch.mm(g, directions, out=grad_weight[first:last])
            along = torch.linalg.vecdot(raw, chunk).mul_(norm).mul_(norm)
            raw.addcmul_(chunk, along.unsqueeze(1), value=-1.0)
        unit = embeddings * inverse_e
        grad = (grad - unit * torch.linalg.vecdot(grad, unit).unsqueeze(1)) * (ctx.scale * inverse_e)
        return grad, grad_weight, None, None, None


def arc_opt(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return _ArcOpt.apply(embeddings, weight, labels, 32.0, 0.2)


def arc_autograd(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    cosine = F.linear(F.normalize(embeddings), F.normalize(weight))
    own = cosine.gather(1, labels.unsqueeze(1)).clamp(-1 + 1e-6, 1 - 1e-6)
    return F.cross_entropy(32.0 * cosine.scatter(1, labels.unsqueeze(1), (own.acos() + 0.2).cos()), labels)


class _TopShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, labels: Tensor, alpha: float, log_q: float) -> Tensor:
        b = alpha - 1.0
        top, classes = theta.topk(math.ceil(0.05 * theta.shape[1]), dim=1)
        q = torch.where(classes == labels.unsqueeze(1), math.exp(log_q), 1.0)
        high = top[:, :1] + 0.0
        low = high - (q[:, :1] ** -b - 1.0) / b
        high = high - (q.sum(1, keepdim=True) ** -b - 1.0) / b
        for _ in range(30):
            middle = 0.5 * (low + high)
            above = ((1.0 + b * (top - middle)).clamp_(min=0.0).pow_(1.0 / b) * q).sum(1, keepdim=True) >= 1.0
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        p = (1.0 + b * (top - low)).clamp_(min=0.0).pow_(1.0 / b) * q
        own = theta.gather(1, labels.unsqueeze(1))
        loss = low - own + ((p * b * (top - low)).sum(1, keepdim=True) + (math.exp(-b * log_q) - 1.0) / b) / alpha
        grad = torch.zeros_like(theta).scatter_(1, classes, p / p.sum(1, keepdim=True))
        grad.scatter_add_(1, labels.unsqueeze(1), torch.full_like(own, -1.0))
        ctx.save_for_backward(grad)
        return loss.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(grads[0] / len(grad)), None, None, None


def paper(embeddings: Tensor, weight: Tensor, labels: Tensor, alpha: float, scale: float, margin: float) -> Tensor:
    theta = F.linear(scale * F.normalize(embeddings), F.normalize(weight))
    return _TopShare.apply(theta, labels, alpha, -scale * margin)


def entmax_loss(embeddings: Tensor, weight: Tensor, labels: Tensor, alpha: float, scale: float) -> Tensor:
    import entmax

    theta = F.linear(scale * F.normalize(embeddings), F.normalize(weight))
    return entmax.entmax_bisect_loss(theta, labels, alpha, n_iter=30).mean()


# ---- measuring ----


class Case:
    """A loss on fixed inputs; every call is one forward and backward, and returns CPU seconds."""

    def __init__(self, variant: str, data: tuple[Tensor, Tensor, Tensor], setting: tuple[float, float, float]) -> None:
        weight, self.embeddings, self.labels = data
        self.weight = weight
        alpha, scale, margin = setting
        self.seen: Any = None
        if variant in ("arc_opt", "arc_autograd"):
            loss = arc_opt if variant == "arc_opt" else arc_autograd
            self.loss = lambda e: loss(e, self.weight, self.labels)
        elif variant == "paper":
            self.loss = lambda e: paper(e, self.weight, self.labels, alpha, scale, margin)
        elif variant == "entmax":
            self.loss = lambda e: entmax_loss(e, self.weight, self.labels, alpha, scale)
        else:
            form, screen, grad = variant.split("-")
            args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "margin": margin}
            args |= {"form": form, "screen": screen, "weight_grad": grad}
            with torch.device("meta"):
                head = build_head(args, embed_dim=weight.shape[1], num_classes=len(weight))
            head.weight = torch.nn.Parameter(weight)
            self.weight = head.weight

            def loss_of_head(e: Tensor) -> Tensor:
                found = head(e, self.labels)
                self.seen = {
                    "path": found.path,
                    "scanned_share": round(found.scanned / len(weight) / len(e), 5),
                    "support_mean": round(found.support.double().mean().item(), 1),
                    "support_max": int(found.support.max()),
                }
                return found.loss

            self.loss = loss_of_head
        self.weight.requires_grad_()

    def __call__(self) -> float:
        """Take a step."""
        self.weight.grad = None
        leaf = self.embeddings.clone().requires_grad_()
        start = time.process_time()
        self.loss(leaf).backward()
        return time.process_time() - start


def compare(
    num_classes: int, dim: int, regime: str, setting: tuple[float, float, float], variants: list[str], rounds: int,
    batch: int = 128,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    data = inputs(regime, num_classes, dim, batch)
    cases = {name: Case(name, data, setting) for name in ("arc_opt", *variants)}
    for case in cases.values():
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case())
            case.weight.grad = None
    for name, mine in times.items():
        ratios = [a / b for a, b in zip(times["arc_opt"], mine, strict=True)]
        yield {
            "num_classes": num_classes, "embed_dim": dim, "batch": batch, "regime": regime, "variant": name,
            "alpha": setting[0], "scale": setting[1], "margin": setting[2],
            "cpu_ms": round(1e3 * statistics.median(mine), 2),
            "faster_than_arc_opt": round(statistics.median(ratios), 3),
            "worst_and_best": [round(min(ratios), 3), round(max(ratios), 3)],
            **(cases[name].seen or {}),
        }  # fmt: skip


def peak_memory(variant: str, num_classes: int, dim: int, regime: str) -> dict[str, Any]:
    """Return bytes above the inputs' of one forward and backward, measured in a process of its own."""
    command = [sys.executable, __file__, "--measure", variant, str(num_classes), str(dim), regime]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weight_mb = 4e-6 * num_classes * dim
    extra = json.loads(printed.splitlines()[-1])["extra_mb"]
    return {
        "num_classes": num_classes, "embed_dim": dim, "regime": regime, "variant": variant, "batch": 128,
        "weight_mb": round(weight_mb), "extra_mb": round(extra, 1), "extra_share": round(extra / weight_mb, 4),
    }  # fmt: skip


def measure(variant: str, num_classes: int, dim: int, regime: str) -> None:
    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(key + ":"))

    small = inputs("random", 5000, dim, 128)
    Case(variant, small, FACE)()  # libraries load and make their buffers
    case = Case(variant, inputs(regime, num_classes, dim, 128), FACE)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the inputs
    before = status("VmRSS")
    case()
    print(json.dumps({"extra_mb": status("VmHWM") - before}))


def revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    ours = "stream-none-sparse"
    regimes = ("trained", "random")
    if args.memory or args.full:
        num_classes = 1_000_000 if args.full else 100_000
        for regime in regimes:
            for variant in (ours, "stream-bf16-sparse", "stream-none-dense"):
                yield peak_memory(variant, num_classes, 512, regime)
        for variant in ("arc_opt", "arc_autograd"):
            yield peak_memory(variant, num_classes, 512, "trained")
    if args.density:
        for num_classes, dim in ((17_982, 256), (100_000, 512)):
            for scale in (32, 24, 20, 16, 14, 12, 8, 5, 2):
                variants = ["auto-none-sparse", ours, "dense-none-dense"]
                yield from compare(num_classes, dim, "random", (1.25, scale, 0.2), variants, args.rounds)
            for alpha, scale in ((1.5, 3.0), (1.75, 1.5), (2.0, 1.0)):
                yield from compare(num_classes, dim, "random", (alpha, scale, 0.1), ["auto-none-sparse"], args.rounds)
    if args.memory or args.density:
        return
    for regime in regimes:
        for setting in (*SPEAKER, FACE):
            others = ["arc_autograd", "paper", "entmax"] if setting == SPEAKER[0] else []
            variants = ["auto-none-sparse", "stream-none-dense", "stream-bf16-sparse", *others]
            yield from compare(17_982, 256, regime, setting, [ours, *variants], args.rounds)
        for setting in (FACE, SPEAKER[0]):
            others = ["arc_autograd", "paper", "entmax"] if setting == FACE else []
            variants = ["stream-none-dense", "stream-bf16-sparse", *others]
            yield from compare(100_000, 512, regime, setting, [ours, *variants], max(3, args.rounds // 3))
        if args.full:
            yield from compare(1_000_000, 512, regime, FACE, [ours, "stream-bf16-sparse"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measured steps of each variant (default 9)")
    parser.add_argument("--full", action="store_true", help="C = 1,000,000 and its peak memory too")
    parser.add_argument("--density", action="store_true", help="only auto against arc_opt over all densities")
    parser.add_argument("--memory", action="store_true", help="only peak memory, C = 100,000")
    parser.add_argument("--measure", nargs=4, metavar=("VARIANT", "C", "D", "REGIME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        variant, num_classes, dim, regime = args.measure
        measure(variant, int(num_classes), int(dim), regime)
        return
    where = {"torch": torch.__version__, "threads": 1, "revision": revision()}
    results = ROOT / "bench" / "results" / "stream.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    margins: dict[str, float] = {}
    with results.open("a") as file:
        for row in rows(args):
            file.write(json.dumps(row | where) + "\n")
            file.flush()
            label = f"{row['num_classes']:>9,} {row['embed_dim']} {row['regime']:<8} {row['variant']:<20}"
            if "extra_mb" in row:
                print(f"{label} {row['extra_mb']:>9} MB above W, {row['extra_share']:.2%} of it", flush=True)
                continue
            seen = f"{row['path']}, scanned {row['scanned_share']:.2%}" if "path" in row else ""
            seen += f", support {row['support_mean']} (max {row['support_max']})" if seen else ""
            print(
                f"{label} alpha {row['alpha']:<5} s {row['scale']:<5} {row['cpu_ms']:>8} ms"
                f" {row['faster_than_arc_opt']:>6}x {row['worst_and_best']}  {seen}",
                flush=True,
            )
            _, screen, grad = row["variant"].split("-") if row["variant"].count("-") == 2 else ("", "", "")
            key = (row["num_classes"], row["embed_dim"], screen)
            measured = row["variant"] != "auto-none-sparse" and grad == "sparse" and key in GOALS
            if measured and not (row["num_classes"] == 17_982 and row["alpha"] == 1.25):
                goal = GOALS[key][row["regime"] == "random"]
                name = f"C {row['num_classes']:,} {screen} {row['regime']} (goal >= {goal}x)"
                margins[name] = min(margins.get(name, math.inf), row["faster_than_arc_opt"])
    if margins:
        print("head: " + ", ".join(f"{ratio}x at {name}" for name, ratio in margins.items()))


if __name__ == "__main__":
    main()
