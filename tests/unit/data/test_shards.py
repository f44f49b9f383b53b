"""Tar files made by Python's tarfile, as WeSpeaker's are, opened through the index."""

import io
import json
import logging
import os
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, encode_m4a

from wespeaker.config import DatasetArgs
from wespeaker.data.audio import read_audio
from wespeaker.data.dataset import read_training_list
from wespeaker.data.shards import index_path, load_index, read_shard_list
from wespeaker.data.utterances import ROW
from wespeaker.errors import InputError


def samples_of(number, count=8000):
    return (np.random.default_rng(number).integers(-9000, 9000, count)).astype(np.int16)


def encoded(number, container="WAV", subtype="PCM_16", **options):
    file = io.BytesIO()
    soundfile.write(file, samples_of(number, **options), RATE, format=container, subtype=subtype)
    return file.getvalue()


def write_tar(path, members):
    """Write (name, bytes) pairs; return the tar file."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(number, suffix="wav", data=None, spk=None):
    key = f"id{number % 3:05d}/v/{number:05d}.wav"
    return [(f"{key}.spk", (spk or f"id{number % 3:05d}").encode()), (f"{key}.{suffix}", data or encoded(number))]


def listed(*shards):
    path = shards[0].parent / "shard.list"
    path.write_text("".join(f"{shard}\n" for shard in shards))
    return path


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "shards_000000000.tar", [member for n in range(5) for member in pair(n)])


def test_shards_of_wespeaker_are_indexed_once_and_used_as_they_are(tmp_path):
    first = write_tar(tmp_path / "a.tar", [*pair(7), *pair(3)])
    second = write_tar(tmp_path / "b.tar", pair(5))
    before = first.read_bytes()
    table = read_shard_list(listed(first, second))
    assert [utt.key for utt in table] == ["id00000/v/00003.wav", "id00001/v/00007.wav", "id00002/v/00005.wav"]
    assert table.speakers == ["id00000", "id00001", "id00002"]
    for utt, number in zip(table, (3, 7, 5), strict=True):
        assert utt.length == (8000, RATE)
        assert utt.source.pcm is not None
        np.testing.assert_array_equal(read_audio(utt.source, 100, 50) * 32768, samples_of(number)[100:150])
    assert first.read_bytes() == before
    made = index_path(first).stat().st_mtime_ns
    assert list(read_shard_list(listed(first, second))) == list(table)
    assert index_path(first).stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("flac", encoded(1, "FLAC")),
        ("WAV", encoded(1)),
        ("wav", encoded(1, "WAV", "PCM_24")),
        ("ogg", encoded(1, "OGG", "VORBIS")),
        ("opus", encoded(1, "OGG", "OPUS")),
        ("mp3", encoded(1, "MP3", "MPEG_LAYER_III")),
        ("m4a", encode_m4a(samples_of(1))),
    ],
)
def test_every_kind_of_member_of_wespeaker_is_read(tmp_path, caplog, suffix, data):
    caplog.set_level(logging.WARNING)
    (utt,) = read_shard_list(listed(write_tar(tmp_path / "a.tar", pair(1, suffix, data))))
    whole = read_audio(utt.source)
    assert utt.length == (len(whole), RATE)
    assert abs(len(whole) - 8000) <= 3 * 1152  # what the codecs add
    np.testing.assert_allclose(read_audio(utt.source, 3000, 500), whole[3000:3500], atol=1e-3)
    if suffix in ("flac", "WAV", "wav"):
        np.testing.assert_array_equal(whole * 32768, samples_of(1))
    assert ("decoded whole for each crop" in caplog.text) == (suffix == "m4a")


def test_other_members_and_folders_are_passed_over(tmp_path):
    (name, spk), audio = pair(1)
    table = read_shard_list(
        listed(write_tar(tmp_path / "a.tar", [audio, (name.replace(".spk", ".txt"), b"text"), (name, spk)]))
    )
    assert len(table) == 1


def rewrite(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def zero_header(data):
    """Spoil the header of the second pair's audio."""
    at = data.index(b"id00001/v/00001.wav.wav")
    data[at : at + 10] = b"\xff" * 10


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda data: data.__delitem__(slice(30000, None)),
            r"damaged after id00001/v/00001\.wav\.spk \(unexpected end",
        ),
        (lambda data: data.__delitem__(slice(35 * 512 + 9, None)), r"damaged after .*00000\.wav\.wav \(no header"),
        (lambda data: data.__delitem__(slice(35 * 512, None)), r"damaged after .*00000\.wav\.wav \(no .* end mark"),
        (zero_header, r"damaged after id00001/v/00001\.wav\.spk \(no header and no end mark at byte"),
        (lambda data: data.clear(), r"damaged after the start \(empty file"),
    ],
)
def test_damaged_tars_are_named_with_the_last_good_member(shard, change, match):
    rewrite(shard, change)
    with pytest.raises(InputError, match=rf"shards_000000000\.tar is {match}"):
        read_shard_list(listed(shard))
    assert not index_path(shard).exists()


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([*pair(1), pair(2)[1]], r"id00002/v/00002\.wav\.wav has no speaker: .*00002\.wav\.spk is missing or empty"),
        ([pair(1)[0], *pair(2)], r"id00001/v/00001\.wav\.spk has no audio beside it \(wav, flac, mp3"),
        ([("a.spk", b" \n"), ("a.wav", encoded(1))], r"a\.wav has no speaker: a\.spk is missing or empty"),
        ([("../a.spk", b"s"), ("../a.wav", encoded(1))], r"the member \.\./a\.spk would lie outside .* refused"),
        ([("/etc/a.spk", b"s"), ("/etc/a.wav", encoded(1))], r"the member /etc/a\.spk would lie outside"),
        ([*pair(1), *pair(2), *pair(1)], r"00001\.wav is the key of two utterances, in .*a\.tar and in .*a\.tar"),
    ],
)
def test_members_that_cannot_be_used_are_named(tmp_path, members, match):
    with pytest.raises(InputError, match=match):
        read_shard_list(listed(write_tar(tmp_path / "a.tar", members)))


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(InputError, match=r"the member a\.wav is not a plain file"):
        read_shard_list(listed(tmp_path / "a.tar"))


def test_bad_audio_is_left_out_up_to_a_share_and_named_at_every_start(tmp_path, caplog):
    empty = encoded(1, count=0)
    path = write_tar(
        tmp_path / "a.tar", [*pair(0), *pair(1, data=empty), *pair(2, data=b"RIFF no audio"), *pair(3, spk="other")]
    )
    for _ in range(2):  # without and with the index
        with pytest.raises(InputError, match=r"2 of 4 utterances .* bad: .*00001\.wav\.wav: .* holds no audio"):
            read_shard_list(listed(path))
        caplog.clear()
        assert len(read_shard_list(listed(path), max_bad_utts=0.5)) == 2
        assert "left out 2 bad utterances" in caplog.text
        assert "00002.wav.wav" in caplog.text
    no_filter = DatasetArgs(filter=False, max_bad_utts=0.5)
    assert len(read_training_list(listed(path), "shard", no_filter)) == 2
    with pytest.raises(
        InputError, match=r"2 of 4 utterances .* bad: .* mend them, or allow more with dataset_args\.max_bad_utts"
    ):
        read_training_list(listed(path), "shard", DatasetArgs(filter=False))


def test_the_index_of_another_tar_is_named(shard):
    read_shard_list(listed(shard))
    write_tar(shard, [member for n in range(5, 10) for member in pair(n)])  # as large as before
    with pytest.raises(InputError, match=r"000\.tar\.index was made from another .*; remove .* and it is made anew"):
        read_shard_list(listed(shard))
    with open(shard, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="this one has 5000"):
        read_shard_list(listed(shard))


def test_a_copied_folder_works(shard, tmp_path):
    table = read_shard_list(listed(shard))
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in (shard, index_path(shard)):
        shutil.copy(path, copy)  # with a new time
    (copy / "shard.list").write_text(f"{shard.name}\n")  # relative to the list
    index_time = index_path(copy / shard.name).stat().st_mtime_ns
    moved = read_shard_list(copy / "shard.list")
    assert [utt.key for utt in moved] == [utt.key for utt in table]
    assert moved[0].source.path == str(copy / shard.name)
    assert index_path(copy / shard.name).stat().st_mtime_ns == index_time


def wrong_version(data):
    head, _, body = bytes(data).partition(b"\n")
    data[:] = json.dumps({**json.loads(head), "version": 99}).encode() + b"\n" + body


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data.clear(), "is damaged"),
        (lambda data: data.__delitem__(slice(-3, None)), "is damaged"),
        (lambda data: data.__setitem__(-3, data[-3] ^ 1), "is damaged"),
        (wrong_version, "has layout 99, this program reads 1"),
    ],
)
def test_a_damaged_index_is_named(shard, change, match):
    read_shard_list(listed(shard))
    rewrite(index_path(shard), change)
    with pytest.raises(InputError, match=rf"\.tar\.index .*{match}.*remove shards_000000000\.tar\.index"):
        read_shard_list(listed(shard))


def test_a_folder_that_cannot_be_written_keeps_the_index_in_memory(shard, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wespeaker.data.shards.save_index", refuse)
    assert len(read_shard_list(listed(shard))) == 5
    assert "cannot be written (Permission denied); the index is kept in memory" in caplog.text
    assert not index_path(shard).exists()


def test_a_missing_tar_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.tar \(a shard, named in .*shard\.list\) does not exist; run stage 2"):
        read_shard_list(listed(tmp_path / "gone.tar"))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts the bytes that are read on Linux")
@pytest.mark.parametrize(("container", "most"), [("WAV", 2 * 16000 * 2), ("FLAC", 250_000)])
def test_a_crop_reads_its_own_bytes_only(tmp_path, container, most):
    """Two minutes, 3.8 MB; a crop of one second from the middle."""
    data = encoded(1, container, count=120 * RATE)
    shard = write_tar(tmp_path / "a.tar", pair(1, container.lower(), data))
    read_shard_list(listed(shard))
    (utt,) = load_index(shard).table
    before = bytes_read()
    wav = read_audio(utt.source, 60 * RATE, RATE)
    spent = bytes_read() - before
    np.testing.assert_array_equal(wav * 32768, samples_of(1, 120 * RATE)[60 * RATE : 61 * RATE])
    assert 2 * RATE * (0.5 if container == "FLAC" else 1) <= spent <= most
    assert len(data) > 10 * most


def bytes_read():
    """Return the bytes that this process asked the kernel for so far."""
    with open(f"/proc/{os.getpid()}/io") as file:
        return int(file.readline().split()[1])


def with_head(**values):
    """Change the head of an index, checksum and all."""

    def change(data):
        line, _, body = bytes(data).partition(b"\n")
        data[:] = json.dumps({**json.loads(line), **values}).encode() + b"\n" + body

    return change


def with_row(field, value, row=0):
    """Change a field of a row, and make the checksum right again."""

    def change(data):
        line, _, body = bytes(data).partition(b"\n")
        rows = np.frombuffer(body[: 5 * ROW.itemsize], ROW).copy()
        rows[field][row] = value
        body = rows.tobytes() + body[5 * ROW.itemsize :]
        data[:] = json.dumps({**json.loads(line), "crc32": zlib.crc32(body)}).encode() + b"\n" + body

    return change


def with_keys(ends=None, blob=None):
    """Change the keys, and make checksum and size right again."""

    def change(data):
        line, _, body = bytes(data).partition(b"\n")
        at = 5 * ROW.itemsize
        tail = body[at : at + 40] if ends is None else np.array(ends, "<i8").tobytes()
        new = body[:at] + tail + (body[at + 40 :] if blob is None else blob)
        head = {**json.loads(line), "crc32": zlib.crc32(new), "key_bytes": len(new) - at - 40}
        data[:] = json.dumps(head).encode() + b"\n" + new

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_head(rows=-1), "is damaged"),
        (with_head(rows=10**30), "is damaged"),
        (with_head(rows="5"), "is damaged"),
        (with_head(rows=0, key_bytes=-48), "is damaged"),
        (with_head(bad=[1]), "is damaged"),
        (with_head(changed=[]), "is damaged"),
        (lambda data: data.__setitem__(slice(None), b"[" * 100_000 + b"\n"), "is damaged"),
        (with_head(speakers=["id00000"]), "rows of speakers or files that it does not have"),
        (with_head(speakers=["id00000", "id00001", "id00002 touch x|"]), "speakers that no line of text can hold"),
        (with_head(speakers=["id00000", "id00001", "x" * 2000]), "speakers that no line of text can hold"),
        (with_row("spk", -1), "rows of speakers or files"),
        (with_row("spk", 2**31 - 1), "rows of speakers or files"),
        (with_row("file", 1), "rows of speakers or files"),
        (with_row("offset", -1), "lie outside of the file"),
        (with_row("offset", 2**63 - 1), "lie outside of the file"),
        (with_row("size", -1), "lie outside of the file"),
        (with_row("size", 2**62), "lie outside of the file"),
        (with_row("samples", 0), "impossible lengths"),
        (with_row("samples", 2**62), "impossible lengths"),
        (with_row("samples", -1, row=4), "impossible lengths"),
        (with_row("rate", 0), "impossible lengths"),
        (with_row("pcm", -7), "impossible lengths"),
        (with_row("pcm", 2**31 - 1), "impossible lengths"),
        (with_keys(ends=[19, 38, 57, 76, 2**62]), "keys that no line of text can hold"),
        (with_keys(ends=[19, 38, 57, 57, 95]), "keys that no line of text can hold"),
        (with_keys(ends=[-1, 38, 57, 76, 95]), "keys that no line of text can hold"),
        (with_keys(blob=b"a b" + b"c" * 92), "keys that no line of text can hold"),
        (with_keys(blob=b"\xff" * 95), "keys that no line of text can hold"),
        (with_keys(blob=b"a" * 18 + "ä".encode() + b"a" * 75), "keys that no line of text can hold"),  # cut in two
    ],
)
def test_lies_of_an_index_are_refused(shard, change, match):
    """What is behind a right checksum was written so; nothing of it leads out of the file, or takes memory."""
    read_shard_list(listed(shard))
    rewrite(index_path(shard), change)
    with pytest.raises(InputError, match=rf"\.tar\.index .*{match}.*remove shards_000000000\.tar\.index"):
        load_index(shard)


@pytest.mark.parametrize("spk", ["id1 id2", "id1\nid2 touch /tmp/x |", "s" * 2000])
def test_speakers_that_manifests_cannot_hold_are_refused(tmp_path, spk):
    with pytest.raises(InputError, match=r"the speaker .* must be of 1 to 1024 bytes in UTF-8 without blanks"):
        read_shard_list(listed(write_tar(tmp_path / "a.tar", pair(1, spk=spk))))


def test_a_name_too_long_for_the_file_system_is_missing(tmp_path):
    (tmp_path / "shard.list").write_text("x" * 5000 + "\n")
    with pytest.raises(InputError, match=r"does not exist, neither in .*; run stage 2 again"):
        read_shard_list(tmp_path / "shard.list")
