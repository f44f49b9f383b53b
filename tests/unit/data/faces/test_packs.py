"""Verification packs: those that Python's pickle writes, ours, and what is none."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from wespeaker.data.faces.packs import FacePack, write_face_pack
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError


def pixels(number, size=12):
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(number, size=12):
    file = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(file, "PNG")
    return file.getvalue()


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


BINS = [encoded(n) for n in range(6)]
SAME = [True, False, True]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        (BINS, SAME),
        [tuple(BINS), tuple(SAME)],
        (BINS, np.array(SAME)),
        (BINS, [np.bool_(same) for same in SAME]),
        (BINS, np.array([1, 0, 1])),
        ([np.frombuffer(data, np.uint8) for data in BINS], [1, 0, 1]),
    ],
)
def test_packs_of_every_kind_are_read(tmp_path, protocol, value):
    pack = FacePack(write(tmp_path / "lfw.bin", value, protocol))
    assert (pack.num_pairs, len(pack)) == (3, 6)
    assert pack.is_same.dtype == np.bool_
    assert pack.is_same.tolist() == SAME
    assert [pack.encoded(i) for i in range(6)] == BINS
    np.testing.assert_array_equal(pack.image(4), pixels(4))
    with pytest.raises(IndexError):
        pack.image(6)


def test_a_pack_of_python_2_is_read(tmp_path):
    bins = b"".join(b"T" + len(data).to_bytes(4, "little") + data for data in BINS)
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"\x80\x02](" + bins + b"e](\x88\x89\x88e\x86.")
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (BINS, SAME)
    pack = FacePack(path)
    assert [pack.encoded(i) for i in range(6)] == BINS
    assert pack.is_same.tolist() == SAME


def test_a_pack_is_sent_to_a_process_by_its_name(tmp_path):
    pack = FacePack(write(tmp_path / "lfw.bin", (BINS, SAME)))
    sent = pickle.dumps(pack)
    assert len(sent) < 500
    assert pickle.loads(sent).encoded(5) == BINS[5]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (BINS, "holds no pair of lists"),
        (7, "holds no pair of lists"),
        ((7, SAME), "expected a list of pictures, found int"),
        ((BINS, 7), "expected a list of booleans"),
        ((BINS, [True, None, True]), "expected a list of booleans"),
        ((BINS, [0, 1, 2]), "expected a list of booleans"),
        ((BINS, np.eye(3, dtype=np.uint8)), "expected a list of booleans"),
        ((BINS, SAME[:2]), "6 pictures for 2 pairs; there must be two for each"),
        (([*BINS[:5], "text"], SAME), "picture 5 is str, not an encoded picture"),
        (([*BINS[:5], np.eye(2, dtype=np.uint8)], SAME), "picture 5 is memoryview, not an encoded picture"),
        (([*BINS[:5], 3.0], SAME), "asks for the opcode BINFLOAT"),
        ((BINS, os.system), r"asks for posix\.system"),
    ],
)
def test_what_is_no_pack_is_named(tmp_path, value, sentence):
    with pytest.raises(InputError, match=rf"lfw\.bin.* {sentence}"):
        FacePack(write(tmp_path / "lfw.bin", value))


def test_missing_empty_and_cut_files_are_named(tmp_path):
    path = tmp_path / "lfw.bin"
    with pytest.raises(InputError, match=r"does not exist; make it with tools/make_face_pack\.py"):
        FacePack(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        FacePack(path)
    path.write_bytes(pickle.dumps((BINS, SAME))[:900])
    with pytest.raises(InputError, match="is no whole pickle"):
        FacePack(path)
    with pytest.raises(InputError, match=r"lfw.bin: picture 1 cannot be decoded"):
        FacePack(write(path, ([BINS[0], BINS[1][:60]], [True]))).image(1)


PAIRS = "a/0.png a/1.png target\na/0.png b/2.png nontarget\n"


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a/0.png", "a/1.png", "b/2.png")):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    (tmp_path / "pairs").write_text(PAIRS)
    return tmp_path


def test_the_tool_packs_pairs_as_other_programs_read_them(folder, tool):
    options = ("--image_dir", folder / "faces", "--pairs", folder / "pairs", "--output", folder / "toy.bin")
    done = tool("make_face_pack", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 pairs, 1 of them of one person, 12 x 12 pixels, read back: {folder}/toy.bin\n"
    bins, is_same = pickle.loads((folder / "toy.bin").read_bytes(), encoding="bytes")
    assert bins == [BINS[0], BINS[1], BINS[0], BINS[2]]
    assert is_same == [True, False]
    assert [FacePack(folder / "toy.bin").encoded(i) for i in range(4)] == bins
    (folder / "faces/b/2.png").unlink()
    failed = tool("make_face_pack", *options)
    assert failed.returncode == 1
    assert failed.stderr == (
        f"make_face_pack.py: error: 1 of 3 pictures of the pairs are not in {folder}/faces: b/2.png; "
        "keys are paths in that folder\n"
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (encoded(2, 10), r"b/2.png has 10 x 10 pixels, a/0.png 12 x 12; all must"),
        (b"text", "b/2.png (cannot be decoded|is no picture)"),
    ],
)
def test_pictures_that_do_not_fit_are_named(folder, data, sentence):
    (folder / "faces/b/2.png").write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        write_face_pack(folder / "toy.bin", folder / "faces", read_trials(folder / "pairs"))
    assert not (folder / "toy.bin").exists()
