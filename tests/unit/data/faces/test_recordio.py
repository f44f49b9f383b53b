"""RecordIO files: against records packed by hand as dmlc-core's format says, damaged ones, and round trips."""

import io
import pickle
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wespeaker.data.faces.record_writer import folder_images, list_images, pack_record, write_recordio
from wespeaker.data.faces.recordio import RecordFile
from wespeaker.errors import InputError

MAGIC = bytes.fromhex("0a23d7ce")  # 0xced7230a, little-endian


def pixels(number, size=12):
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(number, size=12, container="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(file, container)
    return file.getvalue()


def part(flag, data):
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def single(label, data, key=0):
    return part(0, struct.pack("<IfQQ", 0, label, key, 0) + data)


def several(labels, data, key=0):
    return part(0, struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, key, 0, *labels) + data)


def write_set(folder, records, index=None):
    """Write {key: bytes of a record} one after the other; return train.rec."""
    offsets = np.cumsum([0, *map(len, records.values())])
    lines = index or [f"{key}\t{offset}" for key, offset in zip(records, offsets, strict=False)]
    (folder / "train.idx").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train.rec").write_bytes(b"".join(records.values()))
    return folder / "train.rec"


def image_set(count=5):
    return [(encoded(n), n // 2, f"p{n // 2}/{n}.png") for n in range(count)]


def test_a_record_is_packed_as_by_hand():
    assert pack_record((3,), 1, b"abcde").hex() == (
        "0a23d7ce" "1d000000" "00000000" "00004040" "0100000000000000" "0000000000000000" "6162636465" "000000"
    )  # fmt: skip
    assert pack_record((7, 9), 2, b"") == several((7, 9), b"", key=2)


def test_where_the_data_hold_the_magic_number_the_record_is_cut():
    header = struct.pack("<IfQQ", 0, 0, 5, 0)
    assert pack_record((0,), 5, MAGIC + b"wxyz" + MAGIC + MAGIC + b"ab") == (
        part(1, header) + part(2, b"wxyz") + part(2, b"") + part(3, b"ab")
    )
    assert pack_record((0,), 5, b"w" + MAGIC + b"xyz") == part(0, header + b"w" + MAGIC + b"xyz")  # not aligned


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([MAGIC, b"a", b"bc", bytes(4), MAGIC[:2]]), max_size=12), st.integers(0, 1 << 24))
def test_any_data_come_back(tmp_path_factory, chunks, label):
    folder, data = tmp_path_factory.mktemp("set"), b"".join(chunks)
    packed = RecordFile(write_set(folder, {4: pack_record((label,), 4, data), 9: pack_record((1, 2), 9, data)}))
    assert [packed.encoded(i) for i in range(2)] == [data, data]
    assert packed.identities.tolist() == [label, 1]


def test_a_magic_number_in_the_header_is_no_obstacle(tmp_path):
    key = struct.unpack("<I", MAGIC)[0]  # its place in the header is a multiple of four
    record = pack_record((6,), key, b"data")
    assert record.count(MAGIC) == 2
    packed = RecordFile(write_set(tmp_path, {key: record}))
    assert (packed.encoded(0), packed.identity(0)) == (b"data", 6)


def test_record_0_says_which_records_are_images(tmp_path):
    records = {0: several((3, 5), b""), 1: single(0, b"one"), 2: several((1, 0.25, 7), b"two"), 3: several((1, 2), b"")}
    packed = RecordFile(write_set(tmp_path, {**records, 4: several((2, 3), b"")}))
    assert len(packed) == 2
    assert [packed.encoded(i) for i in range(2)] == [b"one", b"two"]
    assert packed.record(1).labels.tolist() == [1, 0.25, 7]
    assert packed.identities.tolist() == [0, 1]
    assert packed.num_identities == 2


def test_without_it_each_key_is_an_image_in_the_order_of_the_keys(tmp_path):
    packed = RecordFile(write_set(tmp_path, {7: single(5, b"seven"), 0: single(3, b"zero"), 2: single(4, b"two")}))
    assert [packed.encoded(i) for i in range(3)] == [b"zero", b"two", b"seven"]
    assert packed.identities.tolist() == [3, 4, 5]
    with pytest.raises(IndexError):
        packed.encoded(3)


def test_a_set_comes_back_and_its_files_are_as_published(tmp_path):
    images = image_set()
    written = write_recordio(tmp_path, images)
    assert tuple(written) == (5, 3, 12, 12)
    packed = RecordFile(tmp_path / "train.rec")
    assert [(packed.encoded(i), packed.identity(i)) for i in range(5)] == [image[:2] for image in images]
    np.testing.assert_array_equal(packed.image(3), pixels(3))
    assert (tmp_path / "property").read_text() == "3,12,12\n"
    assert (tmp_path / "train.lst").read_text().splitlines()[3] == "4\t1\tp1/3.png"
    raw, rows = (tmp_path / "train.rec").read_bytes(), (tmp_path / "train.idx").read_text().split()
    offset = dict(zip(map(int, rows[::2]), map(int, rows[1::2]), strict=True))
    assert list(offset) == list(range(9))
    assert raw[: offset[1]] == several((6, 9), b"")  # five images and one; the end of the keys
    assert raw[offset[7] : offset[8]] == several((3, 5), b"", key=7)  # the second person has the keys 3 and 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["property", "train.idx", "train.lst", "train.rec"]


FORKED = """
import os, sys
from wespeaker.data.faces.recordio import RecordFile
packed = RecordFile(sys.argv[1])
expected = [packed.encoded(i) for i in range(len(packed))]
child = os.fork()
if child == 0:
    os._exit(0 if [packed.encoded(i) for i in range(len(packed))] == expected else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(expected))
"""


def test_threads_and_processes_read_the_same(tmp_path):
    images = image_set(20)
    write_recordio(tmp_path, images)
    packed = RecordFile(tmp_path / "train.rec")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(packed.encoded, list(range(20)) * 20)) == [image[0] for image in images] * 20
    sent = pickle.loads(pickle.dumps(packed))
    assert [sent.encoded(i) for i in range(20)] == [image[0] for image in images]
    done = run_command(sys.executable, "-c", FORKED, tmp_path / "train.rec")
    assert done.stdout == "0 20\n", done.stderr


GOOD = {0: several((3, 4), b""), 1: single(0, b"some bytes"), 2: single(1, b"more"), 3: several((1, 3), b"")}
SIZES = dict(zip(GOOD, np.cumsum([0, *map(len, GOOD.values())]).tolist(), strict=False))


def changed(key, at, data):
    record = bytearray(GOOD[key])
    record[at : at + len(data)] = data
    return {**GOOD, key: bytes(record)}


@pytest.mark.parametrize(
    ("records", "item", "sentence"),
    [
        (changed(2, 0, b"\0"), 1, rf"train.rec: record 2 at byte {SIZES[2]} does not begin as one does"),
        (changed(2, 4, struct.pack("<I", 2 << 29 | 28)), 1, r"record 2 at byte \d+ does not begin"),
        (changed(1, 4, struct.pack("<I", 1 << 29 | 36)), 0, rf"record 1 at byte {SIZES[1]} does not begin .*byte"),
        (changed(2, 4, struct.pack("<I", 99999)), 1, rf"record 2 at byte {SIZES[2]} claims 99999 bytes, of which"),
        (changed(2, 4, struct.pack("<I", 20)), 1, r"record 2 at byte \d+ has 20 bytes, fewer than its header of 24"),
        (changed(2, 8, struct.pack("<I", 1 << 31)), 1, r"record 2 at byte \d+ claims 2147483648 labels"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, records, item, sentence):
    packed = RecordFile(write_set(tmp_path, records))
    with pytest.raises(InputError, match=sentence):
        packed.encoded(item)
    with pytest.raises(InputError, match=sentence):
        _ = packed.identities
    other = 1 - item
    assert packed.encoded(other) in (b"some bytes", b"more")


def test_a_cut_file_is_named(tmp_path):
    path = write_set(tmp_path, GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[: SIZES[2] + 20])
    with pytest.raises(InputError, match=rf"record 2 at byte {SIZES[2]} claims 28 bytes, of which the file has 12"):
        RecordFile(path).encoded(1)
    path.write_bytes(whole[: SIZES[2]])
    with pytest.raises(InputError, match=rf"record 2 at byte {SIZES[2]} lies beyond the end \({SIZES[2]} bytes\)"):
        _ = RecordFile(path).identities


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), 2.0**25])
def test_a_label_that_is_no_identity_is_refused(tmp_path, label):
    packed = RecordFile(write_set(tmp_path, {0: single(0, b"x"), 1: single(label, b"y")}))
    with pytest.raises(InputError, match=r"record 1 has the label .*identities are whole numbers from 0 to 16777216"):
        packed.identity(1)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (["0\t0", "1\t9999999"], "promises the keys 1 to 2, of which .*train.idx has 1"),
        (["0\t0", "1\t40", "2\t-4", "3\t120"], None),
        (["0\t0", "1\t40", "1\t80"], "train.idx has the key 1 twice"),
        (["0\t0", "1 40 7"], r"train.idx:2: expected 'key offset', found '1 40 7'"),
        (["0\t0", "", "1\tx"], r"train.idx:3: offset must be a whole number that fits int64, found 'x'"),
        (["0\t99999999999999999999"], r"train.idx:1: offset must be a whole number"),
        ([""], "train.idx .* is empty"),
    ],
)
def test_a_bad_index_is_named(tmp_path, index, sentence):
    path = write_set(tmp_path, GOOD, index)
    if sentence is None:
        with pytest.raises(InputError, match="record 2 at byte -4 lies beyond the end"):
            RecordFile(path).encoded(1)
    else:
        with pytest.raises(InputError, match=sentence):
            RecordFile(path)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"train\.idx \(where the records begin\) does not exist"):
        RecordFile(tmp_path / "train.rec")
    path = write_set(tmp_path, GOOD)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        RecordFile(path)
    path.unlink()
    with pytest.raises(InputError, match="does not exist; make it with tools/make_recordio"):
        RecordFile(path)
    with pytest.raises(InputError, match="number of images plus one, found nan"):
        RecordFile(write_set(tmp_path, {**GOOD, 0: several((float("nan"), 2), b"")}))


def test_a_record_that_is_no_picture_is_named(tmp_path):
    with pytest.raises(InputError, match=r"train\.rec: record 1 (cannot be decoded|is no picture)"):
        RecordFile(write_set(tmp_path, GOOD)).image(0)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "there are 0 images"),
        ([(encoded(0), 1, "a.png")], r"image 1 \(a.png\) is of identity 1 after -1; identities must come"),
        ([(encoded(n), label, "b.png") for n, label in enumerate((0, 1, 0))], "image 3 .* identity 0 after 1"),
        ([(encoded(0), 0, "a.png"), (encoded(1, 10), 0, "b.png")], "b.png has 10 x 10 pixels, the first image 12 x 12"),
        ([(encoded(0)[:200], 0, "cut.png")], "cut.png cannot be decoded"),
    ],
)
def test_what_cannot_be_packed_is_named_and_leaves_the_old_set(tmp_path, images, sentence):
    write_recordio(tmp_path, image_set())
    with pytest.raises(InputError, match=sentence):
        write_recordio(tmp_path, images)
    assert len(RecordFile(tmp_path / "train.rec")) == 5
    assert len(list(tmp_path.iterdir())) == 4


def write_folder(root):
    for number in range(6):
        path = root / f"person{number // 2}" / "some" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    (root / "empty").mkdir()
    (root / "person1" / "notes.txt").write_text("no picture")
    return root


def test_a_folder_and_a_list_give_the_same_images(tmp_path):
    root = write_folder(tmp_path / "faces")
    images = list(folder_images(root))
    assert [image[1:] for image in images] == [(n // 2, f"person{n // 2}/some/{n}.png") for n in range(6)]
    lines = [f"{key}\t{label:f}\t{path}\n" for key, (_, label, path) in enumerate(images)]
    (tmp_path / "faces.lst").write_text("".join(lines[4:] + lines[:4]))
    assert list(list_images(tmp_path / "faces.lst", root)) == images


def test_a_bad_list_or_folder_is_named(tmp_path):
    path = tmp_path / "faces.lst"
    path.write_text("0\t0\tthere.png\n1 0 spaces.png\n")
    with pytest.raises(InputError, match=r"faces.lst:2: expected 'key label path' with tabs between"):
        list(list_images(path, tmp_path))
    path.write_text("0\t0\tno.png\n")
    with pytest.raises(InputError, match=r"faces.lst:1: .*no.png cannot be read"):
        list(list_images(path, tmp_path))
    with pytest.raises(InputError, match=r"none \(.*folder of images\)"):
        list(folder_images(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no pictures"):
        list(folder_images(tmp_path))


def test_the_tool_packs_a_folder(tmp_path, tool):
    root = write_folder(tmp_path / "faces")
    done = tool("make_recordio", "--image_dir", root, "--output_dir", tmp_path / "set")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"6 images of 3 identities, 12 x 12 pixels, labels read back: {tmp_path}/set/train.rec\n")
    again = tool(
        "make_recordio", "--image_dir", root, "--lst", tmp_path / "set/train.lst", "--output_dir", tmp_path / "b"
    )
    assert again.returncode == 0
    assert (tmp_path / "b/train.rec").read_bytes() == (tmp_path / "set/train.rec").read_bytes()
    failed = tool("make_recordio", "--image_dir", tmp_path / "none", "--output_dir", tmp_path / "set")
    assert failed.returncode == 1
    assert failed.stderr.startswith("make_recordio.py: error: ")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [0, 1])
def test_the_number_of_images_may_be_rounded_in_record_0(tmp_path, extra):
    """2^24 + 2 images and 2^24 + 1: both give 2^24 + 2 or a neighbour of it as float32, n + 1 is not exact."""
    count = 2**24 + 1 + extra
    records = {0: several((count + 1, count + 2), b""), 1: single(0, b"x"), 2: several((1, count + 1), b"")}
    offsets = np.cumsum([0, *map(len, records.values())])
    path = write_set(tmp_path, records)
    rows = "\n".join([f"{key} {offsets[1]}" for key in range(1, count + 1)])
    (tmp_path / "train.idx").write_text(f"0 0\n{rows}\n{count + 1} {offsets[2]}\n")
    assert len(RecordFile(path)) == count
