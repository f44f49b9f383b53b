import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from wespeaker.config import load_config
from wespeaker.ranks import Ranks
from wespeaker.train.speakers import TrainingData, speaker_task
from wespeaker.train.trainer import train


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_step_of_the_network_as_it_is_configured(path, data_dir, tmp_path):
    """All that is changed is the number of utterances and epochs; fine-tuning starts from a step of its base."""
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    (tmp_path / "raw.list").write_text("\n".join(lines[2:6]) + "\n")
    start: tuple[str, ...] = ()
    if "_lm_" in path.stem:
        row_of_a_step(path.with_name(path.name.replace("_lm_", "_")), data_dir, tmp_path, "base")
        start = (f"model_init={tmp_path / 'base' / 'models' / 'model_1.pt'}",)
    row = row_of_a_step(path, data_dir, tmp_path, "exp", *start)
    assert row["step"] == 1
    assert 0 < row["loss"] < 50


def row_of_a_step(path, data_dir, tmp_path, name, *overrides):
    config = load_config(
        path,
        [
            f"exp_dir={tmp_path / name}",
            "num_epochs=1",
            "num_avg=1",
            "dataloader_args.batch_size=4",
            "dataloader_args.num_workers=0",
            "dataset_args.filter_args.min_num_frames=100",
            "scheduler_args.warm_up_epoch=0",
            *overrides,
        ],
    )
    (row,) = run(config, data_dir, tmp_path / "raw.list")
    return row


@pytest.mark.parametrize("backbone", ["ecapa", "campplus", "xvec"])
def test_every_backbone_learns_voices_that_differ_in_pitch(backbone, data_dir, tmp_path):
    config = load_config(
        ROOT / "conf" / f"mini_{backbone}_qmargin.yaml",
        [
            f"exp_dir={tmp_path / 'exp'}",
            "num_epochs=20",
            "margin_update.update_margin=false",
            "num_avg=1",
            "dataloader_args.batch_size=8",
            "dataloader_args.num_workers=0",
            "dataset_args.num_frms=60",
            "dataset_args.aug_prob=0",
            "scheduler_args.final_lr=3.0e-3",
        ],
    )
    log = run(config, data_dir, data_dir / "vox2_dev" / "raw.list")
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert log[-1]["accuracy"] > 0.5  # a guess is right in one of six


def run(config, data_dir, train_list):
    """Train without dev trials; returns the rows of metrics.jsonl."""
    data = TrainingData(train_list, "raw", data_dir / "musan" / "wav.scp", data_dir / "rirs" / "wav.scp")
    train(config, speaker_task(config, data), ranks=Ranks(0, 1, torch.device("cpu")))
    return [json.loads(line) for line in (Path(config.exp_dir) / "metrics.jsonl").read_text().splitlines()]
