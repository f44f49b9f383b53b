import json
import math
import os
import re
import runpy
import signal
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from toy_task import run_ranks, stop_at

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train import checkpoint, trainer
from wespeaker.train.dev import read_dev_trials
from wespeaker.train.distributed import Ranks
from wespeaker.train.learner import Learner
from wespeaker.train.resume import read_run, saved_steps
from wespeaker.train.speakers import TrainingData, speaker_task
from wespeaker.train.trainer import train

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def run(data_dir, tmp_path):
    """Train a very small network; returns its run folder."""

    def go(name="run", *overrides, data_type="raw", dev=False, train_list=None, ranks=ONE):
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
        train(config, speaker_task(config, data, dev=trials), ranks=ranks)
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
    expected = {"epoch", "loss", "accuracy", "margin", "learning_rate", "samples_per_sec", "data_wait"}
    of_the_loss = {"support", "support_max", "zero_target", "zero_loss", "streamed", "scanned", "zero_loss_gap"}
    assert expected | of_the_loss <= log[0].keys()
    assert [row["step"] for row in log if "dev_eer" in row] == [6, 12]
    assert all(0 <= row["data_wait"] <= 1 and 1 <= row["support"] <= 6 for row in log)
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["checkpoint", "model_4.pt"]


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
    with pytest.raises(
        InputError, match=r"of a run on other data: 24 utterances then, 20 now; .*give another --exp_dir"
    ):
        run(train_list=tmp_path / "short.list")


def test_a_list_of_other_speakers_is_refused_though_it_is_as_long(run, data_dir, tmp_path):
    """Labels are positions in the sorted list of speakers: all of them could mean someone else now."""
    run()
    text = (data_dir / "vox2_dev" / "raw.list").read_text()
    (tmp_path / "other.list").write_text(text.replace('"spk": "id00013"', '"spk": "id09999"'))
    gone_and_new = r"speakers that are no longer there: id00013; speakers that were not there: id09999;"
    with pytest.raises(InputError, match=rf"of a run on other data: {gone_and_new}"):
        run(train_list=tmp_path / "other.list")


@pytest.mark.parametrize(("stop", "num_workers"), [(1, 0), (5, 1), (6, 0)])
def test_a_run_goes_on_in_the_middle_of_an_epoch_at_the_very_batch(run, monkeypatch, stop, num_workers):
    """Batches of 7 from 24 utterances: four steps an epoch, the last two of them smaller ones."""
    overrides = (f"dataloader_args.num_workers={num_workers}", "dataloader_args.batch_size=7", "num_epochs=3")
    whole = run("whole", *overrides)
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run("broken", *overrides)
    broken = run("broken", *overrides)
    assert [row["step"] for row in rows(whole)] == [4, 8, 12]
    assert_same_weights(*(checkpoint.load(folder / "models" / "model_3.pt") for folder in (whole, broken)))


@pytest.fixture
def list_with_bad(data_dir, tmp_path):
    """A training list of which two files are gone and one is not audio; and their keys."""
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    bad = []
    for index, file in ((3, "gone.wav"), (10, "broken.wav"), (17, "gone.wav")):
        entry = json.loads(lines[index])
        bad.append(entry["key"])
        lines[index] = json.dumps({**entry, "wav": str(tmp_path / file), "num_samples": 30_000, "sample_rate": 16_000})
    (tmp_path / "bad.list").write_text("\n".join(lines) + "\n")
    return tmp_path / "bad.list", bad


def test_bad_utterances_are_replaced_counted_and_listed(run, list_with_bad):
    train_list, bad = list_with_bad
    folder = run("run", "dataset_args.max_bad_utts=0.2", train_list=train_list)
    lines = [line.split("\t") for line in (folder / "bad_utts.txt").read_text().splitlines()]
    assert [key for key, _ in lines] == sorted(bad)
    assert "gone.wav" in lines[0][1]
    assert "broken.wav cannot be read as audio" in lines[1][1]
    told = [line for line in (folder / "train.log").read_text().splitlines() if "could not be used" in line]
    assert len(told) == 1  # and not again in each epoch
    assert f"epoch 1: 3 of 24 utterances could not be used so far, others took their place (see {folder}" in told[0]
    assert len(rows(folder)) == 4


def test_too_many_bad_utterances_stop_the_run_which_may_be_told_to_go_on(run, list_with_bad):
    train_list, _ = list_with_bad
    with pytest.raises(InputError, match=r"of 24 training utterances cannot be used, more than .*max_bad_utts \(0.1\)"):
        run("run", "dataset_args.max_bad_utts=0.1", train_list=train_list)
    folder = run("run", "dataset_args.max_bad_utts=0.125", train_list=train_list)
    assert len((folder / "bad_utts.txt").read_text().splitlines()) == 3
    with pytest.raises(InputError, match=r"1 of 24 training utterances cannot be used"):
        run("strict", train_list=train_list)


def test_spec_augment_trains_other_weights_the_same_each_time(run):
    plain, masked, again = (run(name, *args) for name, args in (
        ("plain", ()), ("masked", ("dataset_args.spec_aug=true",)), ("again", ("dataset_args.spec_aug=true",)),
    ))  # fmt: skip
    assert_same_weights(final_weights(masked), final_weights(again))
    assert not torch.equal(final_weights(plain)["conv1.weight"], final_weights(masked)["conv1.weight"])


def test_a_loss_that_is_not_finite_stops_the_run(run):
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at or before step \d+ .*lower scheduler_args"):
        run("run", "scheduler_args.initial_lr=1.0e+30", "optimizer=SGD", "optimizer_args={}", "log_batch_interval=1")


@pytest.mark.parametrize("loss", ["q_margin, form: dense", "q_margin, form: stream", "arc_margin"])
def test_one_nan_embedding_stops_the_run_before_it_is_saved(run, monkeypatch, tmp_path, loss):
    real, step = SpeakerNet.forward, count(1)

    def damaged(self, wav, masks):
        embeddings = real(self, wav, masks)
        return embeddings.index_fill(0, torch.tensor([1]), math.nan) if next(step) == 5 else embeddings

    monkeypatch.setattr(SpeakerNet, "forward", damaged)
    with pytest.raises(InputError, match=r"the loss became nan at or before step 6 .*look for damaged audio"):
        run("run", "log_batch_interval=2", f"projection_args={{project_type: {loss}}}")
    saved = read_run(tmp_path / "run" / "models" / "checkpoint" / "step_3")
    assert all(weight.isfinite().all() for weight in saved["backbone"].values())
    assert not (tmp_path / "run" / "models" / "checkpoint" / "step_6").exists()


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


def test_a_sparse_gradient_where_it_cannot_go_is_refused(run):
    with pytest.raises(InputError, match="weight_grad: sparse needs optimizer SGD, which takes it; found AdamW"):
        run("run", "projection_args.weight_grad=sparse")


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


def test_two_processes_deal_with_unequal_parts_and_with_what_either_finds_bad(run, tmp_path, list_with_bad):
    """Steps of 10, 7 and 7 utterances, with a loss that takes statistics over the batches of both."""
    train_list, bad = list_with_bad
    overrides = (
        "dataloader_args.batch_size=5",
        "dataset_args.max_bad_utts=0.2",
        "projection_args={project_type: ada_margin}",
    )

    def go(ranks):
        run("two", *overrides, train_list=train_list, ranks=ranks)

    run_ranks(2, tmp_path, go)
    assert [row["step"] for row in rows(tmp_path / "two")] == [3, 6, 9, 12]
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "two"))
    listed = (tmp_path / "two" / "bad_utts.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == sorted(bad)


def test_the_tool_says_that_it_was_told_to_stop_and_exits_with_75(data_dir, tmp_path, monkeypatch, caplog):
    real, step = Learner.take_step, count(1)

    def signalled(self, *args, **kwargs):
        if next(step) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "take_step", signalled)
    monkeypatch.syspath_prepend(ROOT / "tools")
    options = {
        "--config": [ROOT / "conf" / "mini_qmargin.yaml"],
        "--train_data": [data_dir / "vox2_dev" / "raw.list"],
        "--data_type": ["raw"],
        "--exp_dir": [tmp_path / "run"],
        "--device": ["cpu"],
        "--set": [*SMALL, "dataset_args.aug_prob=0"],
    }
    command = [word for name, values in options.items() for word in (name, *values)]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
    assert ended.value.code == 75
    assert "told to stop by SIGTERM: step 2 (epoch 0.67) is in" in caplog.text
    assert saved_steps(tmp_path / "run" / "models" / "checkpoint") == [2]
