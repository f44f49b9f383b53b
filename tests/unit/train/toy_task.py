"""A task without audio or images: vectors around class means, and a network without batch normalisation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import nn

from wespeaker.config import TrainConfig
from wespeaker.ranks import ALONE, Ranks
from wespeaker.train import checkpoint, trainer
from wespeaker.train.task import Task

NUM_CLASSES, DIM, NUM_EXAMPLES = 11, 6, 24  # classes that neither 2 nor 3 ranks share evenly


@dataclass
class ToyBatch:
    x: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def inputs(self):
        return (self.x,)

    def to(self, device):
        return ToyBatch(self.x.to(device), self.labels.to(device), self.keys, self.bad)


class ToySet:
    def __init__(self, num_examples=NUM_EXAMPLES, bad=()):
        self.num_examples, self.bad = num_examples, bad
        self.means = torch.randn(NUM_CLASSES, DIM, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return self.num_examples

    def __getitem__(self, item):
        epoch, index = item
        noise = torch.randn(DIM, generator=torch.Generator().manual_seed(1000 * epoch + index))
        label = index % NUM_CLASSES
        return self.means[label] + 0.3 * noise, label, f"x{index}", [(f"x{index}", "odd")] if index in self.bad else []


def collate(examples):
    x, labels, keys, bad = zip(*examples, strict=True)
    return ToyBatch(torch.stack(x), torch.tensor(labels), list(keys), [pair for pairs in bad for pair in pairs])


def toy_task(**changed):
    dataset = changed.pop("dataset", ToySet())
    given = {
        "dataset": dataset,
        "collate": collate,
        "num_classes": NUM_CLASSES,
        "embed_dim": DIM,
        "network": lambda: nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, DIM)),
        "about": "toys",
        "facts": {"examples": len(dataset), "names": [f"c{i}" for i in range(NUM_CLASSES)]},
    }
    return Task(**{**given, **changed})


def toy_config(folder: Path, **changed) -> TrainConfig:
    given = {
        "exp_dir": str(folder),
        "num_epochs": 3,
        "num_avg": 1,
        "save_epoch_interval": 100,
        "save_minutes": 0,
        "log_batch_interval": 1,
        "dataloader_args": {"batch_size": 6, "num_workers": 0},  # 4 steps an epoch
        "projection_args": {"project_type": "q_margin", "scale": 4.0},
        "margin_update": {"update_margin": False, "initial_margin": 0.1},
        "optimizer_args": {"weight_decay": 1e-3},
        "scheduler_args": {"warm_up_epoch": 0, "scale_ratio": 1.0},
    }
    return TrainConfig(**{**given, **changed})


def train_toy(folder: Path, *, ranks: Ranks | None = None, task: Task | None = None, **changed) -> Path:
    trainer.train(toy_config(folder, **changed), task or toy_task(), ranks=ranks or Ranks(0, 1, torch.device("cpu")))
    return folder


def stop_at(monkeypatch, step: int) -> None:
    """Make a run write a checkpoint and die after a step."""
    real = trainer._Run._take_step

    def interrupted(self, batch):
        if self.step == step:
            self._save()
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(trainer._Run, "_take_step", interrupted)


def of_rank(rank, world_size, meeting, go):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    try:
        go(Ranks(rank, world_size, torch.device("cpu")))
    finally:
        torch.distributed.destroy_process_group()


def run_ranks(world_size, tmp_path, go, *, expected=0):
    """Call ``go(ranks)`` in several processes, which inherit what it refers to; all must exit as expected.

    The one process of a world of one is this one.
    """
    if world_size == 1:
        go(ALONE)
        return
    meeting = tmp_path / f"rendezvous{len(list(tmp_path.glob('rendezvous*')))}"
    context = mp.get_context("fork")
    processes = [context.Process(target=of_rank, args=(rank, world_size, meeting, go)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [expected] * world_size


def rows(folder: Path):
    """The rows of metrics.jsonl without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clock = ("samples_per_sec", "data_wait")
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def weights(folder: Path, epoch: int = 3):
    return checkpoint.load(folder / "models" / f"model_{epoch}.pt")
