"""Training in two processes of which one fails, is killed, hangs or is late: both end, and say why."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command
from torch import distributed

from wespeaker.train.resume import saved_steps

LOST_SECONDS, TIMEOUT_SECONDS = 3, 4

SCRIPT = f"""
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
from _cli import run
from toy_task import train_toy
from wespeaker import watch
from wespeaker.errors import InputError
from wespeaker.ranks import joined_ranks
from wespeaker.train import trainer

watch.POLL_SECONDS, watch.LOST_SECONDS = 0.2, {LOST_SECONDS}
real = trainer._Run._take_step

def damaged(self, batch):
    if self.step == 5 and self.ranks.rank == 1:
        {{happens}}
    return real(self, batch)

trainer._Run._take_step = damaged

def main():
    with joined_ranks("cpu", timeout=timedelta(seconds={{timeout}})) as ranks:
        train_toy(Path(sys.argv[1]), ranks=ranks, dataloader_args={{{{"batch_size": 3, "num_workers": 0}}}})

run(main, in_every_process=True)
"""


@pytest.fixture
def train_two(tmp_path):
    """Train where something happens to rank 1 in step 6; return the exit codes and what they said."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun has it otherwise
    processes = []

    def go(happens, *, timeout=60):
        script = SCRIPT.format(happens=happens, timeout=timeout)
        shared = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(Path(__file__).parent)]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "WORLD_SIZE": "2",
        }
        for rank in range(2):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", script, tmp_path / "run"],
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return processes

    yield go
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def end_of(process):
    """Return the exit code and the last lines of standard error."""
    _, said = process.communicate(timeout=60)
    return process.returncode, "\n".join(said.splitlines()[-4:])


def test_one_that_finds_bad_data_ends_both_with_its_reason(train_two, tmp_path):
    processes = train_two("raise InputError('there is no audio here; copy it')")
    for number, process in enumerate(processes):
        code, said = end_of(process)
        assert code == 1
        assert "there is no audio here; copy it" in said
        assert number == 1 or "rank 1 on " in said
    assert saved_steps(tmp_path / "run" / "models" / "checkpoint") == [4]


def test_a_bug_of_one_ends_both_with_its_reason(train_two):
    first, second = train_two("[][0]")
    code, said = end_of(first)
    assert code == 1
    assert "rank 1 on " in said
    assert "failed: IndexError('list index out of range')" in said
    code, said = end_of(second)
    assert code == 1
    assert "IndexError: list index out of range" in said


@pytest.mark.parametrize("lost", ["SIGKILL", "SIGSTOP"])
def test_one_that_is_killed_or_stands_still_is_named_by_the_other(train_two, lost):
    first, _ = train_two(f"os.kill(os.getpid(), signal.{lost})")
    code, said = end_of(first)
    assert code == 1
    assert "rank 1 on " in said
    assert f"gave no sign of life for {LOST_SECONDS} s" in said


def test_an_exchange_that_takes_too_long_is_named_with_its_step(train_two):
    """As where the ranks do not agree what to do next, or a disk hangs."""
    first, _ = train_two("time.sleep(90)", timeout=TIMEOUT_SECONDS)
    code, said = end_of(first)
    assert code == 1
    found = r"rank 0, after step 5 \(epoch 1\.25\): an exchange with the other ranks failed in all_\w+, called by "
    assert re.search(found + r"\w+ \(\w+\.py:\d+\): .*Timed out waiting \d+ms .*; look at their output", said)


def test_a_bad_option_is_told_before_any_other_process_is_waited_for(tmp_path):
    alone = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    command = [sys.executable, ROOT / "tools" / "train.py", "--train_data", "none", "--exp_dir", tmp_path / "run"]
    config = ["--config", ROOT / "conf" / "mini_qmargin.yaml", "--set"]
    done = run_command(*command, *config, "modle=ResNet34", timeout=60, **alone)
    assert done.returncode == 1
    assert "did you mean 'model'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
