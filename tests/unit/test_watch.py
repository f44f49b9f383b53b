"""Two processes that watch over each other, of which one is lost."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from conftest import ROOT
from torch import distributed

from wespeaker import watch
from wespeaker.errors import InputError

LOST_SECONDS = 3

SCRIPT = f"""
import os, signal, sys, time
from torch import distributed
from wespeaker import watch
from wespeaker.errors import InputError
watch.POLL_SECONDS, watch.LOST_SECONDS = 0.2, {LOST_SECONDS}
rank = int(sys.argv[1])
store = distributed.TCPStore("127.0.0.1", int(sys.argv[2]), is_master=False)
with watch.watched(store, rank=rank, world_size=2):
    if rank == 1:
        {{happens}}
    else:
        {{other}}
"""


@pytest.fixture
def store():
    """What the processes meet at; torchrun has it otherwise."""
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def run_two(store, happens, other="time.sleep(90)"):
    """Return (exit code, standard error) of rank 0, and the process of rank 1."""
    script = SCRIPT.format(happens=happens, other=other)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    commands = ([sys.executable, "-c", script, str(rank), str(store.port)] for rank in (0, 1))
    first, second = (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands
    )
    try:
        _, said = first.communicate(timeout=80)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            process.stderr.close()
    return first.returncode, said


def test_the_reason_of_one_that_fails_reaches_the_other(store):
    code, said = run_two(store, "raise InputError('there is no data here; copy it')")
    assert code == 1
    assert "rank 1 on " in said
    assert "failed: there is no data here; copy it; this process (rank 0 on " in said


def test_one_that_stops_without_a_word_is_missed(store):
    code, said = run_two(store, "os.kill(os.getpid(), signal.SIGSTOP)")  # as a machine without power: nothing is closed
    assert code == 1
    assert f"gave no sign of life for {LOST_SECONDS} s" in said


def test_one_that_left_in_good_order_is_not_missed(store):
    code, said = run_two(store, "pass", other=f"time.sleep({LOST_SECONDS} + 3)")
    assert (code, said) == (0, "")


def test_one_that_never_came_is_named(store, monkeypatch):
    monkeypatch.setattr(watch, "ARRIVAL_TIMEOUT", timedelta(seconds=0.5))
    missing = r"rank 1, 2 of 3 processes did not come within 0:00:00.5"
    with pytest.raises(InputError, match=missing), watch.watched(store, rank=0, world_size=3):
        pass
