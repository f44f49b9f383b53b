import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_task import DIM, NUM_CLASSES, ToySet, rows, run_ranks, stop_at, toy_config, toy_task, train_toy, weights

from wespeaker.errors import InputError
from wespeaker.ranks import ALONE
from wespeaker.train import checkpoint, trainer
from wespeaker.train.preemption import Preempted
from wespeaker.train.resume import Checkpoints, read_ranks, read_rows, read_run, saved_steps
from wespeaker.train.runlog import check_run_folder

# ---- the folders ----


def own(value=0.0):
    return {"classes": (0, 4), "rows": {"weight": torch.full((4, 2), value)}, "rng": {}}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint", ALONE)
    for step in (3, 6, 9):
        checkpoints.save(step, own(float(step)), {"step": step})
    return checkpoints


def test_the_last_two_are_kept_and_the_newest_is_taken(saved):
    assert saved_steps(saved.folder) == [6, 9]
    assert read_run(saved.newest()) == {"step": 9}
    assert sorted(path.name for path in saved.newest().iterdir()) == ["files.json", "rank_0.pt", "run.pt"]
    assert not list(saved.folder.glob(".*"))
    assert Checkpoints(saved.folder / "none", ALONE).newest() is None


def test_what_a_killed_process_did_not_remove_is_removed(saved):
    shutil.copytree(saved.folder / "step_6", saved.folder / "step_3")
    (saved.folder / ".step_12.partial").mkdir()
    assert saved.newest().name == "step_9"
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step_6", "step_9"]


def flip_a_byte(folder):
    path = folder / "rank_0.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_a_byte, r"rank_0\.pt has another SHA-256"),
        (lambda folder: os.truncate(folder / "run.pt", 100), r"run\.pt has 100 of \d+ bytes"),
        (lambda folder: (folder / "rank_0.pt").unlink(), r"rank_0\.pt is missing"),
        (lambda folder: (folder / "files.json").write_text("{"), r"files\.json: "),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(saved, caplog, damage, named):
    damage(saved.folder / "step_9")
    assert saved.newest() == saved.folder / "step_6"
    assert "step_9 is damaged" in caplog.text
    assert "going on from" in caplog.text
    saved.save(7, own(), {"step": 7})  # of the run that went on from 6
    assert saved_steps(saved.folder) == [6, 7]
    damage(saved.folder / "step_6")
    damage(saved.folder / "step_7")
    with pytest.raises(InputError, match=named + r".*there is no other to go on from: give another --exp_dir"):
        saved.newest()


def test_a_step_that_was_damaged_can_be_written_again(saved):
    flip_a_byte(saved.folder / "step_9")
    saved.save(9, own(1.0), {"step": 9})
    assert saved.newest() == saved.folder / "step_9"
    assert saved_steps(saved.folder) == [6, 9]


def test_what_cannot_be_written_leaves_the_one_before(saved, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        with pytest.raises(OSError, match=r"cannot be written: rank 0: .*No space left.*goes on from the one before"):
            saved.save(12, own(), {"step": 12})
    assert saved.newest() == saved.folder / "step_9"
    saved.save(12, own(), {"step": 12})  # what was left of the other attempt is no hindrance
    assert saved_steps(saved.folder) == [9, 12]


def test_what_does_not_read_back_removes_nothing(saved, monkeypatch):
    real = os.replace

    def lossy(source, target):
        real(source, target)
        if Path(target).name == "step_12":
            flip_a_byte(Path(target))

    monkeypatch.setattr(os, "replace", lossy)
    with pytest.raises(OSError, match=r"step_12 was written but does not read back: rank_0\.pt has another SHA-256"):
        saved.save(12, own(), {"step": 12})
    assert saved_steps(saved.folder) == [6, 9, 12]
    assert saved.newest() == saved.folder / "step_9"


def test_rows_are_dealt_out_anew(tmp_path):
    """Four ranks with 3, 2, 0 and 1 classes of two sub-centres each."""
    weight, step = torch.randn(12, 5), torch.tensor(7.0)
    for rank, (first, last) in enumerate([(0, 3), (3, 5), (5, 5), (5, 6)]):
        part = weight[2 * first : 2 * last]
        state = {"head": {"weight": part}, "optimizer": {"weight": {"exp_avg": -part, "step": step}}}
        checkpoint.save({"classes": (first, last), "rows": state}, tmp_path / f"rank_{rank}.pt")
    for first, last in [(0, 6), (1, 4), (4, 6), (5, 6)]:
        found = read_rows(tmp_path, first, last)
        assert torch.equal(found["head"]["weight"], weight[2 * first : 2 * last])
        assert torch.equal(found["optimizer"]["weight"]["exp_avg"], -weight[2 * first : 2 * last])
        assert found["optimizer"]["weight"]["step"] == step
    assert [state["classes"] for state in read_ranks(tmp_path)] == [(0, 3), (3, 5), (5, 5), (5, 6)]


# ---- runs ----


def assert_same_run(a, b):
    assert rows(a) == rows(b)
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


SETTINGS = {
    "sgd": {},
    "adamw": {"optimizer": "AdamW", "optimizer_args": {}},
    "random margins": {"projection_args": {"project_type": "elastic_arc", "scale": 4.0}},
    "class memory": {"projection_args": {"project_type": "kappa", "scale": 4.0}},
    "dropout": {
        "task": toy_task(network=lambda: nn.Sequential(nn.Linear(DIM, 16), nn.Dropout(0.5), nn.Linear(16, DIM)))
    },
    "rows of three steps": {"log_batch_interval": 3},
    "clipped": {"clip_grad_norm": 0.3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "loader": {"dataloader_args": {"batch_size": 7, "num_workers": 1}},  # the last two steps are smaller
    "sparse": {"projection_args": {"project_type": "q_margin", "form": "stream", "weight_grad": "sparse"}},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_goes_on_in_mid_epoch_bit_for_bit(tmp_path, monkeypatch, setting, world_size):
    changed = dict(SETTINGS[setting])
    if world_size == 2 and "dataloader_args" not in changed:
        changed["dataloader_args"] = {"batch_size": 3, "num_workers": 0}

    def whole(ranks):
        train_toy(tmp_path / "whole", ranks=ranks, **changed)

    def broken(ranks):
        with monkeypatch.context() as patch:
            stop_at(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                train_toy(tmp_path / "broken", ranks=ranks, **changed)
        train_toy(tmp_path / "broken", ranks=ranks, **changed)

    for go in (whole, broken):
        run_ranks(world_size, tmp_path, go)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


HEADS = {
    "q_margin": {"scale": 4.0},
    "kappa": {"scale": 4.0},  # with a memory of each class
    "a3m": {"scale": 4.0, "reinit_epoch": 3},
    "arc_margin_intertopk_subcenter": {"scale": 4.0},  # with three rows of each class
    "sphereface2": {"scale": 4.0},  # with a parameter that all have
    "softmax": {},
}


@pytest.mark.parametrize("project_type", HEADS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_run_of_two_processes_goes_on_with_another_number(tmp_path, monkeypatch, project_type, world_size):
    """The same batches, hence the same losses but for rounding, and the same sums of the row that was under way."""
    projection = {"project_type": project_type, **HEADS[project_type]}
    changed = {"projection_args": projection, "log_batch_interval": 2, "optimizer": "AdamW", "optimizer_args": {}}

    def go(size, interrupted, folder):
        def run(ranks):
            with monkeypatch.context() as patch:
                if interrupted:
                    stop_at(patch, 5)
                args = {"batch_size": 6 // size, "num_workers": 0}
                train_toy(tmp_path / folder, ranks=ranks, dataloader_args=args, **changed)

        def stopped(ranks):
            with pytest.raises(KeyboardInterrupt):
                run(ranks)

        run_ranks(size, tmp_path, stopped if interrupted else run)

    go(2, interrupted=False, folder="whole")
    go(2, interrupted=True, folder="broken")
    go(world_size, interrupted=False, folder="broken")
    whole, broken = rows(tmp_path / "whole"), rows(tmp_path / "broken")
    assert [row["step"] for row in broken] == [2, 4, 6, 8, 10, 12]
    for row, other in zip(whole, broken, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
        assert row["accuracy"] == pytest.approx(other["accuracy"])
    mine, theirs = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    sub_centers = 3 if "subcenter" in project_type else 1
    assert mine["projection.weight"].shape == (NUM_CLASSES * sub_centers, DIM)
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_two_processes_with_half_the_batch_are_one(tmp_path):
    """Of unequal last parts too: 25 examples in steps of 6, then 7 in two."""
    changed = {"clip_grad_norm": 0.5, "task": toy_task(dataset=ToySet(25))}
    train_toy(tmp_path / "one", **changed)
    args = {"batch_size": 3, "num_workers": 0}
    run_ranks(2, tmp_path, lambda ranks: train_toy(tmp_path / "two", ranks=ranks, dataloader_args=args, **changed))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert {key: other[key] for key in row} == pytest.approx(row, rel=1e-4, abs=1e-6)


def test_another_size_of_steps_is_refused_with_the_batch_size_to_give(tmp_path):
    train_toy(tmp_path / "run", num_epochs=1)
    for batch_size, world_size, advice in [
        (6, 2, r"steps of 6 examples, and 2 processes of batch_size 6 take 12; give dataloader_args.batch_size=3"),
        (3, 4, "give a number of processes that divides 6"),
        (5, 1, "give dataloader_args.batch_size=6"),
    ]:
        config = toy_config(tmp_path / "run", num_epochs=1, dataloader_args={"batch_size": batch_size})
        with pytest.raises(InputError, match=advice):
            check_run_folder(tmp_path / "run", config, world_size=world_size)
    allowed = toy_config(tmp_path / "run", num_epochs=1, dataloader_args={"batch_size": 2}, save_minutes=5)
    check_run_folder(tmp_path / "run", allowed, world_size=3)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path):
    whole = train_toy(tmp_path / "whole")
    train_toy(tmp_path / "broken")
    for name in ("model_3.pt", "checkpoint/step_12/rank_0.pt"):
        (tmp_path / "broken" / "models" / name).unlink()
    assert "is damaged" not in (train_toy(whole) / "train.log").read_text()
    assert "step_12 is damaged (rank_0.pt is missing)" in (train_toy(tmp_path / "broken") / "train.log").read_text()
    assert_same_run(whole, tmp_path / "broken")


def test_save_minutes_writes_in_mid_epoch(tmp_path, monkeypatch):
    saved, real = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a, **k: (saved.append(step), real(self, step, *a, **k))
    )
    train_toy(tmp_path / "often", num_epochs=1, save_minutes=1e-9)
    train_toy(tmp_path / "seldom", num_epochs=1, save_minutes=1e9)
    assert saved == [1, 2, 3, 4, 4]
    assert rows(tmp_path / "often") == rows(tmp_path / "seldom")


def test_bad_utterances_of_an_unfinished_epoch_are_in_their_file_with_the_checkpoint(tmp_path, monkeypatch):
    task = toy_task(dataset=ToySet(bad=range(NUM_CLASSES)))
    stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "run", task=task)
    found = (tmp_path / "run" / "bad_utts.txt").read_text().splitlines()
    assert len(found) == NUM_CLASSES
    assert "odd" in found[0]


# ---- signals ----


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path, monkeypatch, caplog):
    real = trainer._Run._take_step

    def signalled(self, batch):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, batch)

    before = signal.getsignal(signal.SIGUSR1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_take_step", signalled)
        with pytest.raises(Preempted):
            train_toy(tmp_path / "broken")
    assert "told to stop by SIGUSR1: step 6 (epoch 1.50) is in" in caplog.text
    assert signal.getsignal(signal.SIGUSR1) is before
    assert saved_steps(tmp_path / "broken" / "models" / "checkpoint") == [4, 6]
    assert_same_run(train_toy(tmp_path / "whole"), train_toy(tmp_path / "broken"))


def test_all_ranks_stop_when_one_is_told_to(tmp_path, monkeypatch):
    real = trainer._Run._take_step

    def signalled(self, batch):
        if self.step == 5 and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    def go(ranks):
        monkeypatch.setattr(trainer._Run, "_take_step", signalled)
        with pytest.raises(Preempted):
            train_toy(tmp_path / "run", ranks=ranks, dataloader_args={"batch_size": 3, "num_workers": 0})

    run_ranks(2, tmp_path, go)
    assert read_run(tmp_path / "run" / "models" / "checkpoint" / "step_6")["step"] == 6
    assert "told to stop by another rank: step 6" in (tmp_path / "run" / "train.log").read_text()
    assert "told to stop by SIGTERM: step 6" in (tmp_path / "run" / "train.rank1.log").read_text()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from toy_task import train_toy
from wespeaker.train import trainer
from wespeaker.train.preemption import Preempted

real = trainer._Run._take_step

def signalled(self, batch):
    if self.step == 5:
        os.killpg(0, signal.SIGTERM)
    return real(self, batch)

trainer._Run._take_step = signalled
try:
    train_toy(Path(sys.argv[1]), dataloader_args={"batch_size": 6, "num_workers": 2})
except Preempted:
    raise SystemExit(75)
"""


def test_a_signal_to_the_whole_process_group_finds_the_loaders_alive(tmp_path):
    """As schedulers send it: to every process of the job."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[2])])}
    done = subprocess.run(command, env=environment, start_new_session=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr
    assert saved_steps(tmp_path / "run" / "models" / "checkpoint") == [4, 6]
    assert_same_run(train_toy(tmp_path / "whole"), train_toy(tmp_path / "run"))
