"""Heads whose classes are split over processes: the numbers of one process that holds them all, in float64."""

import traceback

import pytest
import torch
from torch import distributed
from torch import multiprocessing as mp

from wespeaker.losses import PROJECT_TYPES, Shards, build_head, heads
from wespeaker.losses.shards import RankRows

C, D = 37, 12  # 37 classes: uneven on two processes and on three
SIZES = {1: [12], 2: [7, 5], 3: [6, 1, 5]}  # rows of each process
LABELS = {
    "any": torch.arange(12) * 7 % C,
    "of the last process": C - 1 - torch.arange(12) % 8,
    "of one class": torch.full((12,), 5),
}
ALPHAS = (1.05, 1.25, 1.5, 1.75, 2.0, 2.5)
TYPES = [{"project_type": name} for name in PROJECT_TYPES]
TYPES += [{"project_type": "q_margin", "alpha": alpha, "scale": 12.0} for alpha in ALPHAS]
TYPES += [{"project_type": "mag_margin", "alpha": 1.5, "scale": 12.0, "place": "log_q"}]
TYPES += [{"project_type": "elastic_arc", "plus": "none", "alpha": 1.25, "scale": 20.0}]
TYPES += [{"project_type": "softmax", "sample_rate": 0.4}, {"project_type": "add_margin", "sample_rate": 0.4}]
STREAM = [{**args, "form": "stream"} for args in TYPES if args["project_type"] in ("q_margin", "entmax", "sparsemax")]
STREAM += [{"project_type": "q_margin", "alpha": 1.5, "form": "stream", "screen": "bf16", "weight_grad": "sparse"}]
BUFFERED = [
    {**args, "form": "dense"} for args in TYPES if args["project_type"] in ("q_margin", "add_margin", "arc_margin")
]
BUFFERED = [args for args in BUFFERED if args.get("alpha", 1.0) <= 2.0]
CASES = [(form, args) for form, many in (("dense", TYPES), ("stream", STREAM), ("buffered", BUFFERED)) for args in many]


def batch(labels, *, seed=3):
    """Embeddings near, at and opposite to the prototypes that a head of seed 0 starts with, and anywhere."""
    torch.manual_seed(0)
    weight = build_head({"project_type": "q_margin"}, embed_dim=D, num_classes=C).weight.detach().double()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(12, D, generator=generator, dtype=torch.float64)
    nearness = torch.tensor([0.0, 0.3, 1.0, 1e-3, -1.0, 0.6]).repeat(2).double().unsqueeze(1)
    return (
        20.0
        * (nearness.abs() + 1.0)
        * (0.3 * noise + nearness * weight[labels] / weight[labels].norm(dim=1, keepdim=True))
    )


def steps(args, labels, *, rank=0, world_size=1, dtype=torch.float64):
    """Take two steps of training; return all that is to be equal: this process's rows, and the whole of the rest."""
    torch.manual_seed(0)
    shards = Shards(C, rank, world_size)
    head = build_head(args, embed_dim=D, num_classes=C, shards=shards).to(dtype)
    rows = RankRows(SIZES[world_size], rank).mine_at
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    found = []
    for epoch in (1, 2):
        head.start_epoch(epoch)
        embeddings = batch(labels, seed=epoch)[rows].to(dtype).requires_grad_()
        out = head(embeddings, labels[rows])
        optimizer.zero_grad()
        # As a trainer does: the mean over the ranks of these is the mean over all samples, and what DDP would average.
        (out.loss * len(embeddings) * world_size / len(labels)).backward()
        for parameter in head.parameters():
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        found.append(
            {
                "per_sample": out.per_sample.detach(),
                "correct": out.correct,
                "support": out.support,
                "target_posterior": out.target_posterior,
                "of_embeddings": embeddings.grad / world_size,
            }
        )
        found[-1] |= {f"of_{name}": parameter.grad.clone() for name, parameter in head.named_parameters()}
        optimizer.step()
    return found, {key: value.clone() for key, value in head.state_dict().items()}, sorted(head.sharded_names)


def worker(rank, world_size, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    found = {}
    for number, (form, args) in enumerate(CASES):
        heads.FEW_CLASSES = 1 if form == "buffered" else 4096
        for name, labels in LABELS.items():
            try:
                found[number, name] = steps(args, labels, rank=rank, world_size=world_size)
            except Exception:
                found[number, name] = traceback.format_exc()
                raise
            finally:
                torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory):
    """What each of two or three processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join([f, *map(str, a.values())]) for f, a in CASES])
@pytest.mark.parametrize("name", LABELS)
def test_several_processes_find_what_one_finds(processes, number, name, monkeypatch):
    form, args = CASES[number]
    if form == "buffered":
        monkeypatch.setattr(heads, "FEW_CLASSES", 1)
    expected, state, sharded = steps(args, LABELS[name])
    parts = [found[number, name] for found in processes]
    tolerance = {"rtol": 1e-6, "atol": 1e-9}
    for step, one in enumerate(expected):
        for key, value in one.items():
            several = [part[0][step][key] for part in parts]
            if key.startswith("of_") and key != "of_embeddings" and key.removeprefix("of_") not in sharded:
                for other in several:
                    torch.testing.assert_close(other, value, **tolerance)
            else:
                torch.testing.assert_close(torch.cat(several), value, **tolerance, msg=lambda m, key=key: f"{key}: {m}")
    for key, value in state.items():
        several = [part[1][key] for part in parts]
        if key in sharded:
            torch.testing.assert_close(torch.cat(several), value, **tolerance)
        else:
            for other in several:
                torch.testing.assert_close(other, value, **tolerance)
