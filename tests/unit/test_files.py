import os
import socket

import pytest

from wespeaker.errors import InputError
from wespeaker.files import open_plain, replacing


def test_plain_files_are_opened(tmp_path, monkeypatch):
    (tmp_path / "-").write_bytes(b"a file")
    monkeypatch.chdir(tmp_path)
    for buffering in (-1, 0):
        with open_plain("-", buffering=buffering) as file:  # not standard input
            assert file.read() == b"a file"
    with pytest.raises(FileNotFoundError):
        open_plain("nothing")
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="is not a plain file but a pipe, a device or a socket"):
            open_plain(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(OSError, match="socket"):
            open_plain(tmp_path / "socket")


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_is_no_path_is_a_sentence(path):
    with pytest.raises(InputError, match="is no path of a file"):
        open_plain(path)


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    path = tmp_path / "a[1].txt"
    (tmp_path / ".a[1].0123abcd.partial.txt").write_text("half a li")
    (tmp_path / ".a.0123abcd.partial.txt").write_text("of another file")
    with replacing(path) as slow:
        slow.write_text("slow")
        with replacing(path) as quick:
            quick.write_text("quick")
        assert path.read_text() == "quick"
    assert path.read_text() == "slow"
    assert sorted(left.name for left in tmp_path.iterdir()) == [".a.0123abcd.partial.txt", "a[1].txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_named_and_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with (
        pytest.raises(OSError, match=r"No space left on device.*results\.json"),
        replacing(path),
        open("/dev/full", "w") as full,
    ):
        full.write("new")
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("results.json", "old")]
