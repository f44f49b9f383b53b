import json

import pytest
import torch
from conftest import ROOT

from wespeaker.config import load_config
from wespeaker.train.distributed import Ranks
from wespeaker.train.speakers import TrainingData, speaker_task
from wespeaker.train.trainer import train


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_step_of_the_network_as_it_is_configured(path, data_dir, tmp_path):
    """All that is changed is the number of utterances and epochs."""
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    (tmp_path / "raw.list").write_text("\n".join(lines[2:6]) + "\n")
    config = load_config(
        path,
        [
            f"exp_dir={tmp_path / 'exp'}",
            "num_epochs=1",
            "num_avg=1",
            "dataloader_args.batch_size=4",
            "dataloader_args.num_workers=0",
            "scheduler_args.warm_up_epoch=0",
        ],
    )
    data = TrainingData(tmp_path / "raw.list", "raw", data_dir / "musan" / "wav.scp", data_dir / "rirs" / "wav.scp")
    train(config, speaker_task(config, data), ranks=Ranks(0, 1, torch.device("cpu")))
    (row,) = (json.loads(line) for line in (tmp_path / "exp" / "metrics.jsonl").read_text().splitlines())
    assert row["step"] == 1
    assert 0 < row["loss"] < 50
