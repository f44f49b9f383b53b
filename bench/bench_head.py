"""How fast is the exact Q-Margin head, and how much memory does it take, against ArcFace's and other heads?

Forward and backward, one thread, variants in one process taken in turn after a warm-up; CPU time of the process,
medians of the ratios round by round. The allocator keeps its memory, so that no head pays for fresh pages, which would
slow down the others more than ours (`--cold` lets them). The other heads are in baselines.py; `arc_opt`, a dense
ArcFace head with all tricks, is what the goals are about. Run from the repository root, one or more parts:

    python bench/bench_head.py                     # speaker and face: C = 17,982 and 100,000, ten minutes
    python bench/bench_head.py density             # `auto` and the dense form, from 0.5 % to all classes active
    python bench/bench_head.py memory              # peak memory, a fresh process each; 12 GB
    python bench/bench_head.py million             # C = 1,000,000, D = 512; 8 GB
    python bench/bench_head.py growth              # time over C and over B
    python bench/bench_head.py sgd                 # C = 1,000,000: head and optimiser together; 8 GB
    python bench/bench_head.py --table             # no run: bench/results/head.jsonl as a table

Two kinds of input. random: before training, all directions alike, cosines spread by 1/sqrt(D). trained: cosines of
negatives spread by 0.08, of targets 0.65 ± 0.08, lengths of prototypes spread by 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import baselines
import torch
from measuring import ROOT, Row, forget_peak, in_turn, keep_memory, median_ms, memory_mb, ratios, record, return_memory
from torch import Tensor
from torch.nn import functional as F

from wespeaker.losses import HeadOutput, RowSparseSGD, build_head

SPEAKER = [(1.5, 10.0, 0.1), (1.75, 5.0, 0.1), (2.0, 5.0, 0.1)]  # alpha, scale, margin
FACE = (1.25, 32.0, 0.2)
Setting = tuple[float, float, float]
Data = tuple[Tensor, Tensor, Tensor]  # weight (C, D), embeddings (B, D), labels (B,)

# Our head, by name: what is added to `projection_args`.
OURS = {
    "stream": {"form": "stream", "weight_grad": "sparse", "screen": "none"},
    "stream, dense gradient": {"form": "stream", "screen": "none"},
    "stream, bf16 screen": {"form": "stream", "weight_grad": "sparse", "screen": "bf16"},
    "auto": {"form": "auto", "weight_grad": "sparse"},
    "dense": {"form": "dense"},
}
OTHERS = ("arc_autograd", "paper", "entmax")
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
AUTO_GOAL = 1 / 1.5


def goal(part: str, variant: str, regime: str, alpha: float) -> float | None:
    """Return the least speed asked for: arc_opt's time over ours, or another head's time over the stream's."""
    late = regime == "trained"
    if part == "density":
        return {"auto": AUTO_GOAL, "dense": 1 / 1.35 if alpha <= 1.5 else 1 / 1.7}.get(variant)
    if variant in OTHERS and part == "face" and late:
        return {"arc_autograd": 3.0, "paper": 4.0, "entmax": 9.0}[variant]
    goals = {
        ("speaker", "stream"): (1.9, 1.5),
        ("face", "stream"): (2.6, 1.8),
        ("million", "stream"): (3.0, 3.0),
        ("million", "stream, bf16 screen"): (5.0, 4.0),
        ("sgd", "stream"): (2.5, 2.5),
    }
    if (part, variant) not in goals or (part == "speaker" and alpha == FACE[0]) or (part == "face" and alpha > 1.25):
        return None
    return goals[part, variant][0 if late else 1]


def inputs(regime: str, num_classes: int, dim: int, batch: int = 128) -> Data:
    """Return weight, embeddings and labels of a regime."""
    torch.manual_seed(0)
    weight, embeddings = torch.randn(num_classes, dim), torch.randn(batch, dim)
    labels = torch.randint(num_classes, (batch,))
    if regime == "random":
        return weight, embeddings, labels
    spectrum = torch.ones(dim).index_fill_(0, torch.arange(min(156, dim), dim), 0.1)  # 1/0.08² directions matter
    for rows in weight.split(65_536):
        rows.mul_(spectrum).mul_(torch.exp(0.15 * torch.randn(len(rows), 1)))
    own = F.normalize(weight[labels])
    noise = embeddings * spectrum
    noise = F.normalize(noise - (noise * own).sum(1, keepdim=True) * own)
    cosine = (0.65 + 0.08 * torch.randn(batch, 1)).clamp(-0.5, 0.95)
    return weight, 20.0 * (cosine * own + (1.0 - cosine**2).sqrt() * noise), labels


class Case:
    """A head on fixed inputs; a call is one forward and backward, and a step where there is an optimiser.

    Returns CPU seconds; the weight's gradient is left for whoever wants to look at it.
    """

    def __init__(self, variant: str, data: Data, setting: Setting, *, sgd: bool = False) -> None:
        self.weight, self.embeddings, self.labels = data
        self.weight = torch.nn.Parameter(self.weight)
        self.out: HeadOutput | None = None
        alpha, scale, margin = setting
        if variant in OURS:
            args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "margin": margin, **OURS[variant]}
            with torch.device("meta"):
                self.head = build_head(args, embed_dim=self.weight.shape[1], num_classes=len(self.weight))
            self.head.weight = self.weight
            self.loss: Callable[[Tensor], Tensor] = self._own_loss
        else:
            keys = {"paper": (alpha, scale, margin), "entmax": (alpha, scale)}.get(variant, ())
            function = baselines.entmax_loss if variant == "entmax" else getattr(baselines, variant)
            self.loss = lambda e: function(e, self.weight, self.labels, *keys)
        self.optimizer: torch.optim.Optimizer | None = None
        if sgd:
            ours = variant in OURS
            self.optimizer = (
                RowSparseSGD([self.weight], **SGD) if ours else torch.optim.SGD([self.weight], fused=True, **SGD)
            )

    def _own_loss(self, embeddings: Tensor) -> Tensor:
        self.out = self.head(embeddings, self.labels)
        return self.out.loss

    def __call__(self) -> float:
        """Take a step."""
        self.weight.grad = None
        leaf = self.embeddings.clone().requires_grad_()
        start = time.process_time()
        self.loss(leaf).backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return time.process_time() - start

    def timed(self) -> float:
        """Take a step and let go of the gradient, so that two cases never hold one each."""
        seconds = self()
        self.weight.grad = None
        return seconds

    def seen(self) -> Row:
        """Say what our head found, of the last step."""
        if self.out is None:
            return {}
        support = self.out.support.double()
        return {
            "path": self.out.path,
            "scanned_share": round(self.out.scanned / len(self.weight) / len(self.labels), 5),
            "support_mean": round(support.mean().item(), 1),
            "support_max": int(support.max()),
        }


def compare(
    part: str, data: Data, regime: str, setting: Setting, variants: list[str], rounds: int, *, sgd: bool = False
) -> Iterator[Row]:
    """Time variants against arc_opt on the same inputs."""
    cases = {name: Case(name, data, setting, sgd=sgd) for name in ("arc_opt", *variants)}
    times = in_turn({name: case.timed for name, case in cases.items()}, rounds)
    for name, case in cases.items():
        other = name in OTHERS
        faster, span = ratios(times[name], times["stream"]) if other else ratios(times["arc_opt"], times[name])
        least = goal(part, name, regime, setting[0])
        yield {
            "part": part, "num_classes": len(data[0]), "embed_dim": data[0].shape[1], "batch": len(data[2]),
            "regime": regime, "variant": name, "alpha": setting[0], "scale": setting[1], "margin": setting[2],
            "cpu_ms": median_ms(times[name]), "times": faster, "span": span,
            "what": "slower than stream" if other else "faster than arc_opt",
            "goal": least and round(least, 3), **case.seen(),
        }  # fmt: skip


def timings(part: str, rounds: int) -> Iterator[Row]:
    """Yield the rows of a part that times."""
    for regime in ("trained", "random"):
        if part == "speaker":
            data = inputs(regime, 17_982, 256)
            for setting in (*SPEAKER, FACE):
                others = OTHERS if setting == SPEAKER[0] else ()
                yield from compare(part, data, regime, setting, [*OURS, *others], rounds)
        elif part == "face":
            data = inputs(regime, 100_000, 512)
            streams = [name for name in OURS if name.startswith("stream")]
            yield from compare(part, data, regime, FACE, [*streams, *OTHERS], max(3, rounds // 2))
            yield from compare(part, data, regime, SPEAKER[0], streams, max(3, rounds // 2))
        elif part == "million":
            data = inputs(regime, 1_000_000, 512)
            yield from compare(part, data, regime, FACE, ["stream", "stream, bf16 screen"], max(3, rounds // 3))
        elif part == "sgd":
            data = inputs(regime, 1_000_000, 256)
            yield from compare(part, data, regime, FACE, ["stream"], max(3, rounds // 3), sgd=True)


def densities(rounds: int) -> Iterator[Row]:
    """From few to all classes active: a smaller scale makes more of them."""
    scales = {
        1.25: (32, 24, 20, 16, 14, 12, 8, 5, 2),
        1.5: (10, 5, 3, 1.5),
        1.75: (5, 3, 1.5, 0.5),
        2.0: (5, 2, 1, 0.5),
    }
    for num_classes, dim in ((17_982, 256), (100_000, 512)):
        data = inputs("random", num_classes, dim)
        for alpha, its_scales in scales.items():
            for scale in its_scales:
                setting = (alpha, float(scale), 0.2 if alpha == 1.25 else 0.1)
                yield from compare("density", data, "random", setting, ["auto", "dense"], max(3, rounds // 2))


def growth(rounds: int) -> Iterator[Row]:
    """Time a class and sample, over C and over B, against C = 100,000 and B = 128."""
    sizes = [(c, 128) for c in (17_982, 50_000, 100_000, 300_000, 1_000_000)] + [(100_000, b) for b in (64, 256, 512)]
    weight, _, _ = inputs("trained", 1_000_000, 256)
    cases = {}
    for num_classes, batch in sizes:
        _, embeddings, labels = inputs("trained", num_classes, 256, batch)
        cases[num_classes, batch] = Case("stream", (weight[:num_classes], embeddings, labels), FACE)
    times = in_turn({str(size): case.timed for size, case in cases.items()}, rounds)
    unit = [seconds / 100_000 / 128 for seconds in times[str((100_000, 128))]]
    for num_classes, batch in sizes:
        mine = times[str((num_classes, batch))]
        each, span = ratios([seconds / num_classes / batch for seconds in mine], unit)
        yield {
            "part": "growth", "num_classes": num_classes, "embed_dim": 256, "batch": batch, "regime": "trained",
            "variant": "stream", "alpha": FACE[0], "scale": FACE[1], "margin": FACE[2],
            "cpu_ms": median_ms(mine), "times": each, "span": span,
            "what": "time a class and sample, C = 100,000 and B = 128 being 1", **cases[num_classes, batch].seen(),
        }  # fmt: skip


def memory() -> Iterator[Row]:
    """Peak memory above the inputs' of one forward and backward, each in a process of its own."""
    streams = [name for name in OURS if name.startswith("stream")]
    wanted = [(1_000_000, 512, regime, name) for regime in ("trained", "random") for name in streams]
    wanted += [(1_000_000, 512, "trained", name) for name in ("dense", "arc_opt", "arc_autograd")]
    wanted += [(num_classes, 512, "trained", "stream") for num_classes in (18_000, 100_000, 300_000)]
    base: dict[int, float] = {}
    rows = []
    for num_classes, dim, regime, variant in wanted:
        command = [sys.executable, __file__, "--measure", variant, str(num_classes), str(dim), regime]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        weight_mb = 4e-6 * num_classes * dim
        row = {
            "part": "memory", "num_classes": num_classes, "embed_dim": dim, "batch": 128, "regime": regime,
            "variant": variant, "weight_mb": round(weight_mb), **json.loads(printed.splitlines()[-1]),
        }  # fmt: skip
        row["extra_share"] = round(row["extra_mb"] / weight_mb, 4)
        if variant.startswith("stream") and "dense" not in variant and num_classes == 1_000_000:
            row["goal"] = 0.04 if regime == "trained" else 0.13
        if variant == "arc_autograd":
            base[num_classes] = row["extra_mb"]
        rows.append(row)
    for row in rows:
        if row["num_classes"] in base:
            row["arc_autograd_takes"] = round(base[row["num_classes"]] / row["extra_mb"], 1)
        yield row


def measure(variant: str, num_classes: int, dim: int, regime: str) -> None:
    """Print one row of `memory`; runs in a fresh process."""
    return_memory()
    Case(variant, inputs("random", 5000, dim), FACE)()  # libraries load and make their buffers
    case = Case(variant, inputs(regime, num_classes, dim), FACE)
    forget_peak()
    before = memory_mb("VmRSS")
    case()
    row: Row = {"extra_mb": round(memory_mb("VmHWM") - before, 1)}
    grad = case.weight.grad
    if case.out is not None and grad is not None and grad.is_sparse:  # the formula of the streaming form
        active = len(grad.coalesce().indices()[0])
        nnz = int(case.out.support.sum())
        chunk = 10 * len(case.labels) * 2048 + 40 * nnz + 4.8 * active * dim + 4 * num_classes
        row |= {"active_classes": active, "formula_mb": round(1e-6 * chunk + 16, 1)}
    print(json.dumps(row))


def sentence(row: Row) -> str:
    """Return a row as a line of text."""
    where = f"{row['num_classes']:>9,} {row['embed_dim']} {row['batch']:>3} {row['regime']:<8} {row['variant']:<22}"
    if row["part"] == "memory":
        formula = f", formula {row['formula_mb']} MB" if "formula_mb" in row else ""
        return f"{where} {row['extra_mb']:>9} MB above the weight, {row['extra_share']:.2%} of it{formula}"
    seen = f"  {row['path']}, scanned {row['scanned_share']:.2%}" if "path" in row else ""
    seen += f", support {row['support_mean']} (max {row['support_max']})" if seen else ""
    wanted = f" (goal {row['goal']})" if row.get("goal") else ""
    return (
        f"{where} alpha {row['alpha']:<5} s {row['scale']:<5} {row['cpu_ms']:>9} ms"
        f" {row['times']:>6}x {row['span']} {row['what']}{wanted}{seen}"
    )


def table() -> None:
    """Print the latest row of each case as Markdown."""
    latest: dict[tuple[object, ...], Row] = {}
    keys = ("memory", "part", "num_classes", "embed_dim", "batch", "regime", "variant", "alpha", "scale")
    for line in (ROOT / "bench" / "results" / "head.jsonl").read_text().splitlines():
        row = json.loads(line)
        latest[tuple(row.get(key) for key in keys)] = row
    for part in dict.fromkeys(row["part"] for row in latest.values()):
        rows = [row for row in latest.values() if row["part"] == part]
        print(f"\n### {part}\n")
        if part == "memory":
            print("| C | D | inputs | head | MB above the weight | share of it | goal | formula | arc_autograd takes |")
            print("|---|---|---|---|---|---|---|---|---|")
        else:
            print("| C | D | B | inputs | α, s | head | ms | times | | goal | support mean / max | path, scanned |")
            print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            print(markdown(row))


def markdown(row: Row) -> str:
    """Return a row as a line of a Markdown table."""
    if row["part"] == "memory":
        times = f"{row['arc_autograd_takes']}x" if "arc_autograd_takes" in row else ""
        cells = [f"{row['num_classes']:,}", row["embed_dim"], row["regime"], row["variant"], row["extra_mb"],
                 f"{row['extra_share']:.1%}", f"{row['goal']:.0%}" if "goal" in row else "",
                 row.get("formula_mb", ""), times]  # fmt: skip
    else:
        wanted = f"≥ {row['goal']}" if row.get("goal") else ""
        seen = f"{row['support_mean']} / {row['support_max']}" if "path" in row else ""
        path = f"{row['path']}, {row['scanned_share']:.2%}" if "path" in row else ""
        cells = [f"{row['num_classes']:,}", row["embed_dim"], row["batch"], row["regime"],
                 f"{row['alpha']:g}, {row['scale']:g}", row["variant"], row["cpu_ms"], f"{row['times']}x", row["what"],
                 wanted, seen, path]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parts: dict[str, Callable[[int], Iterator[Row]]] = {
        **{part: partial(timings, part) for part in ("speaker", "face", "million", "sgd")},
        "density": densities,
        "growth": growth,
        "memory": lambda _: memory(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="what to run (default: speaker face)")
    parser.add_argument("--rounds", type=int, default=9, help="measured steps of each variant, fewer of slow ones")
    parser.add_argument("--cold", action="store_true", help="let every step pay for fresh pages, as malloc does")
    parser.add_argument("--table", action="store_true", help="print the latest results as Markdown and leave")
    parser.add_argument("--measure", nargs=4, metavar=("VARIANT", "C", "D", "REGIME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.parts) - parts.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    if not (args.cold or args.measure):
        keep_memory()
    if args.table:
        table()
    elif args.measure:
        variant, num_classes, dim, regime = args.measure
        measure(variant, int(num_classes), int(dim), regime)
    else:
        missed, met, pages = 0, 0, "cold" if args.cold else "warm"
        for part in args.parts or ("speaker", "face"):
            for row in record("head", parts[part](args.rounds), torch=torch.__version__, memory=pages):
                print(sentence(row), flush=True)
                if row.get("goal"):
                    good = row["extra_share"] <= row["goal"] if part == "memory" else row["times"] >= row["goal"]
                    met, missed = met + good, missed + (not good)
        print(f"head: {met} of {met + missed} goals met")


if __name__ == "__main__":
    main()
