"""WeSpeaker's folders and configs through the tools, as a user has them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from wespeakers import merged, recipe, resnet18_weights, saved, write_folder

from wespeaker.config import load_config

Tool = Callable[..., subprocess.CompletedProcess[str]]
SIZE = {"feat_dim": 80, "embed_dim": 16}
FBANK = {"fbank_args": {"num_mel_bins": 80}}
NUM_CLASSES = 18  # 6 speakers of the data at 3 speeds


@pytest.fixture
def published(tmp_path: Path) -> Path:
    document = saved(model="ResNet18", model_args=SIZE, dataset_args=FBANK)
    return write_folder(tmp_path / "published", document, resnet18_weights(embed_dim=16, num_classes=NUM_CLASSES))


def test_a_published_model_embeds_and_scores_as_it_is_and_imported(
    published: Path, data_dir: Path, tmp_path: Path, tool: Tool
) -> None:
    exp_dir = tmp_path / "exp"
    (trials,) = (data_dir / "vox1" / "trials").glob("*.kaldi")
    done = tool("import_wespeaker", "--wespeaker_dir", published, "--exp_dir", exp_dir)
    assert done.returncode == 0, done.stderr
    assert "ResNet18: " in done.stdout
    assert "18 classes, prototypes that training can go on with" in done.stdout
    assert done.stderr == ""

    for run in (published, exp_dir):
        done = tool("extract", "--exp_dir", run, "--data_dir", data_dir / "vox1", "--num_workers", 0)
        assert done.returncode == 0, done.stderr
        embeddings = run / "embeddings" / "vox1"
        assert ("is read as a config of WeSpeaker's" in done.stderr) == (run is published)
        scored = tool(
            "score",
            *("--embeddings", embeddings / "xvector.scp", "--trials", trials, "--output_dir", run / "scores"),
            *("--replicates", 0),
        )
        assert scored.returncode == 0, scored.stderr
    name = f"{trials.name}.score"
    assert (published / "scores" / name).read_bytes() == (exp_dir / "scores" / name).read_bytes()


def test_their_recipe_trains_and_goes_on_from_an_imported_model(
    published: Path, data_dir: Path, tmp_path: Path, tool: Tool
) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.dump(recipe(model="ResNet18", model_args=SIZE, dataset_args=FBANK)))
    assert tool("import_wespeaker", "--wespeaker_dir", published, "--exp_dir", tmp_path / "exp").returncode == 0
    done = tool(
        "train",
        *("--config", tmp_path / "theirs.yaml", "--exp_dir", tmp_path / "run", "--data_type", "raw"),
        *("--train_data", data_dir / "vox2_dev" / "raw.list"),
        *("--noise_data", data_dir / "musan" / "wav.scp", "--reverb_data", data_dir / "rirs" / "wav.scp"),
        *("--set", f"model_init={tmp_path}/exp/models/avg_model.pt", "num_epochs=1", "num_avg=1"),
        *("dataloader_args.batch_size=12", "dataloader_args.num_workers=0", "dataset_args.num_frms=40"),
        *("dataset_args.filter_args.min_num_frames=40", "scheduler_args.warm_up_epoch=0"),
    )
    assert done.returncode == 0, done.stderr
    assert "gpus has no meaning here: run.sh --gpus or --nproc says where to train" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert 0 < rows[-1]["loss"] < 50


def test_a_config_is_printed_as_ours(tmp_path: Path, tool: Tool) -> None:
    document = recipe(enable_amp=True)
    (tmp_path / "theirs.yaml").write_text(yaml.dump(document))
    done = tool("import_wespeaker", "--config", tmp_path / "theirs.yaml")
    assert done.returncode == 0, done.stderr
    (tmp_path / "ours.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "ours.yaml") == load_config(tmp_path / "theirs.yaml")
    assert "# enable_amp becomes precision=fp16 (a scaled loss as there, with the head in float32)" in done.stdout
    assert "# gpus has no meaning here: run.sh --gpus or --nproc says where to train" in done.stdout
    assert done.stderr == ""


def test_what_cannot_be_imported_is_a_sentence(published: Path, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.dump(merged(recipe(), {"loss": "MSELoss"})))
    for options, sentence in (
        (["--config", tmp_path / "theirs.yaml"], "loss: must be CrossEntropyLoss, found 'MSELoss'"),
        (["--config", "conf/mini_qmargin.yaml"], "is no config of WeSpeaker's; what is ours needs no import"),
        ([], "give one of --config and --wespeaker_dir"),
    ):
        done = tool("import_wespeaker", *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    weights = resnet18_weights(embed_dim=8, num_classes=2)
    write_folder(published, saved(model="ResNet18", model_args=SIZE, dataset_args=FBANK), weights)
    done = tool("import_wespeaker", "--wespeaker_dir", published)
    assert done.returncode == 1
    assert "the weights do not fit the network of the config: seg_1.weight, seg_1.bias missing" in done.stderr
