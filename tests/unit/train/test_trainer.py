import json
import math
import re
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train import checkpoint, trainer
from wespeaker.train.dev import read_dev_trials
from wespeaker.train.distributed import Ranks
from wespeaker.train.trainer import TrainingData, train

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def run(data_dir, tmp_path):
    """Train a very small network; returns its run folder."""

    def go(name="run", *overrides, data_type="raw", dev=False, train_list=None):
        config = load_config(
            ROOT / "conf" / "mini_qmargin.yaml",
            [*SMALL, "num_epochs=4", "dev_interval=2", f"exp_dir={tmp_path / name}", *overrides],
        )
        data = TrainingData(
            train_list or data_dir / f"vox2_dev/{data_type}.list",
            data_type,
            data_dir / "musan/wav.scp",
            data_dir / "rirs/wav.scp",
        )
        vox2_test = data_dir / "vox2_test"
        trials = read_dev_trials(vox2_test / "dev.kaldi", vox2_test) if dev else None
        train(config, data, dev=trials, ranks=ONE)
        return Path(config.exp_dir)

    return go


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_weights(folder):
    return checkpoint.load(folder / "models" / "model_4.pt")


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_folder_explains_itself(run, tmp_path):
    folder = run("run", "log_batch_interval=2", dev=True)
    assert load_config(folder / "config.yaml").num_epochs == 4
    environment = json.loads((folder / "env.json").read_text())
    assert {"command", "git_revision", "packages", "host"} <= environment.keys()
    assert "effective peak learning rate" in (folder / "train.log").read_text()
    log = rows(folder)
    assert [row["step"] for row in log] == [2, 3, 4, 6, 8, 9, 10, 12]
    expected = {"epoch", "loss", "accuracy", "margin", "learning_rate", "utt_per_sec", "data_wait"}
    of_the_loss = {"support", "support_max", "zero_target", "zero_loss", "streamed", "scanned", "zero_loss_gap"}
    assert expected | of_the_loss <= log[0].keys()
    assert [row["step"] for row in log if "dev_eer" in row] == [6, 12]
    assert all(0 <= row["data_wait"] <= 1 and 1 <= row["support"] <= 6 for row in log)
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["checkpoint.pt", "model_4.pt"]


def test_the_keys_of_a_model_file_are_wespeakers(run):
    weights = final_weights(run())
    assert {"conv1.weight", "layer4.0.bn2.running_var", "seg_1.weight", "projection.weight"} <= weights.keys()
    assert not any(key.startswith(("model.", "module.", "fbank")) for key in weights)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_run_ends_as_an_uninterrupted_one_bit_for_bit(run, monkeypatch, num_workers):
    assert_interruption_changes_nothing(run, monkeypatch, f"dataloader_args.num_workers={num_workers}")


@pytest.mark.parametrize("loss", ["a3m, reinit_epoch: 3", "kappa, scale: 8", "elastic_arc, plus: rank", "ada_margin"])
def test_a_loss_with_a_memory_goes_on_from_it(run, monkeypatch, loss):
    assert_interruption_changes_nothing(run, monkeypatch, f"projection_args={{project_type: {loss}}}")


def test_prototypes_are_re_initialised_once(run):
    folder = run("run", "projection_args={project_type: a3m, reinit_epoch: 3}")
    lines = [line for line in (folder / "train.log").read_text().splitlines() if "re-initialised" in line]
    assert len(lines) == 1
    assert "epoch 3: 6 prototypes were re-initialised from their embeddings" in lines[0]


def assert_interruption_changes_nothing(run, monkeypatch, override):
    whole = run("whole", override)
    real = trainer._Run._save

    def interrupted(self):
        real(self)
        if self.step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("broken", override)
    broken = run("broken", override)
    assert_same_weights(final_weights(whole), final_weights(broken))
    losses = [{row["step"]: row["loss"] for row in rows(folder)} for folder in (whole, broken)]
    assert losses[0] == losses[1]
    assert losses[0].keys() == {3, 6, 9, 12}


def test_a_repeated_command_changes_nothing(run):
    folder = run()
    before = {path: path.read_bytes() for path in folder.rglob("*.pt")}
    metrics = (folder / "metrics.jsonl").read_text()
    assert run() == folder
    assert before == {path: path.read_bytes() for path in folder.rglob("*.pt")}
    assert metrics == (folder / "metrics.jsonl").read_text()


def test_shards_and_raw_files_train_the_same_network(run):
    assert_same_weights(final_weights(run("a")), final_weights(run("b", data_type="shard")))


def test_another_config_in_the_same_folder_is_refused_with_the_difference(run):
    run()
    with pytest.raises(InputError, match=r"run of another config: num_epochs was 4, now 5; give another --exp_dir"):
        run("run", "num_epochs=5")
    run("run", "dataloader_args.num_workers=1", "log_batch_interval=1")


def test_other_data_in_the_same_folder_is_refused(run, data_dir, tmp_path):
    run()
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    (tmp_path / "short.list").write_text("\n".join(lines[:20]) + "\n")
    with pytest.raises(InputError, match=r"was trained on .*'utterances': 24.* now the data is .*'utterances': 20"):
        run(train_list=tmp_path / "short.list")


def test_a_loss_that_is_not_finite_stops_the_run(run):
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at or before step \d+ .*lower scheduler_args"):
        run("run", "scheduler_args.initial_lr=1.0e+30", "optimizer=SGD", "optimizer_args={}", "log_batch_interval=1")


@pytest.mark.parametrize("loss", ["q_margin, form: dense", "q_margin, form: stream", "arc_margin"])
def test_one_nan_embedding_stops_the_run_before_it_is_saved(run, monkeypatch, tmp_path, loss):
    real, step = SpeakerNet.embed, count(1)

    def damaged(self, wav):
        embeddings = real(self, wav)
        return embeddings.index_fill(0, torch.tensor([1]), math.nan) if next(step) == 5 else embeddings

    monkeypatch.setattr(SpeakerNet, "embed", damaged)
    with pytest.raises(InputError, match=r"the loss became nan at or before step 6 .*look for damaged audio"):
        run("run", "log_batch_interval=2", f"projection_args={{project_type: {loss}}}")
    saved = checkpoint.load(tmp_path / "run" / "models" / checkpoint.CHECKPOINT)
    assert saved["step"] == 3
    assert all(weight.isfinite().all() for weight in saved["net"].values())


def test_it_learns(run):
    """Voices that differ in pitch alone must be told apart after some epochs."""
    overrides = ("num_epochs=25", "dataloader_args.batch_size=4", "scheduler_args.final_lr=1.0e-3")
    folder = run("learn", *overrides, "model_args.m_channels=4", "dataset_args.aug_prob=0")
    log = rows(folder)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["accuracy"] > 0.6  # a guess is right in one of six


def test_the_sparse_head_and_the_dense_one_train_alike(run):
    overrides = ("optimizer=SGD", "optimizer_args={weight_decay: 1.0e-4}", "scheduler_args.initial_lr=0.1")
    dense = run("dense", *overrides, "projection_args.form=dense")
    sparse = run("sparse", *overrides, "projection_args.form=stream", "projection_args.weight_grad=sparse")
    assert [row["streamed"] for row in rows(dense)] == [0.0] * len(rows(dense))
    assert [row["streamed"] for row in rows(sparse)] == [1.0] * len(rows(sparse))
    for row, other in zip(rows(dense), rows(sparse), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["scanned"] == 6


def test_a_sparse_gradient_where_it_cannot_go_is_refused(run, data_dir):
    with pytest.raises(InputError, match="weight_grad: sparse needs optimizer SGD, which takes it; found AdamW"):
        run("run", "projection_args.weight_grad=sparse")
    config = load_config(ROOT / "conf" / "mini_qmargin.yaml", ["optimizer=SGD", "optimizer_args={}",
                                                               "projection_args.weight_grad=sparse"])  # fmt: skip
    with pytest.raises(InputError, match="sparse is for a run of one process"):
        train(config, TrainingData(data_dir / "vox2_dev/raw.list", "raw"), dev=None, ranks=Ranks(0, 2, ONE.device))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), None),
        (("margin_update.final_margin=1.0",), r"asks for a cosine gap of 29\.7 .* \(2 is the largest .* lower it"),
        (("projection_args.scale=1.5", "margin_update.final_margin=0.0"), "cosine gap of 1.33 .* raise .*scale"),
    ],
)
def test_a_margin_that_no_sample_can_satisfy_is_warned_of(run, overrides, expected):
    soon = ("margin_update.increase_start_epoch=1", "margin_update.fix_start_epoch=2")
    folder = run("run", *soon, *overrides)
    log = (folder / "train.log").read_text()
    assert "a sample's loss is zero from a cosine gap of" in log
    assert ("WARNING" in log) == (expected is not None)
    assert expected is None or re.search(expected, log)


def test_the_loss_rows_have_no_gap_for_softmax_losses(run):
    log = rows(run("run", "projection_args={project_type: add_margin}"))
    assert all("zero_loss_gap" not in row and row["support"] == row["support_max"] == 6 for row in log)
    assert all(row["zero_target"] == row["zero_loss"] == 0.0 for row in log)
