import os

import pytest

from wespeaker.data.corpora import find_files


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.wav", "a/b/2.wav", "elsewhere/3.wav", "elsewhere/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "a"


def found(root):
    return [path.relative_to(root).as_posix() for path in find_files(root, (".wav",))]


def test_links_to_folders_are_followed(root):
    (root / "c").symlink_to("../elsewhere")
    assert found(root) == ["1.wav", "b/2.wav", "c/3.wav"]


def test_links_in_a_circle_are_followed_once(root):
    """Two links to their own folder are 2**40 paths before the system gives up."""
    for name in ("up", "and_up"):
        (root / "b" / name).symlink_to("..")
    assert found(root) == ["1.wav", "b/2.wav"]
    (root / "c").symlink_to("../elsewhere")
    os.symlink(root, root.parent / "elsewhere" / "back")
    assert found(root).count("c/3.wav") == 1
    assert len(found(root)) < 10
