"""A folder that one process writes to and another one means to."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from wespeaker.errors import InputError
from wespeaker.lock import NAME, locked

HOLDER = """
import sys, time
from pathlib import Path
from wespeaker.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(90)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_told_who_was_first_until_that_one_dies(tmp_path, holder):
    expected = rf"is being written by process {holder.pid} on \S+ since 20\d\d-\S+ \(-c {tmp_path}\); wait for its end"
    with pytest.raises(InputError, match=expected), locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / NAME).read_text()  # which holds nothing any more
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / NAME).read_text()


@pytest.mark.parametrize("damage", ["", "{}", "[1]", "\0\xff", '{"pid": 1}'])
def test_who_has_not_said_its_name_is_another_process(tmp_path, holder, damage):
    (tmp_path / NAME).write_text(damage)
    with pytest.raises(InputError, match="is being written by another process; wait"), locked(tmp_path):
        pass


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path):
    """As a loader does, for seconds."""
    context = multiprocessing.get_context("fork")
    over = context.Event()
    with locked(tmp_path / "a"):
        child = context.Process(target=over.wait, args=(60,))
        child.start()
    try:
        command = [sys.executable, "-c", HOLDER.replace("time.sleep(90)", ""), str(tmp_path / "a")]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        assert child.is_alive()
    finally:
        over.set()
        child.join()


def test_the_folder_is_made_and_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
            raise KeyError


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refused(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    with locked(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
    assert "see to it that nothing else writes to it" in caplog.text
