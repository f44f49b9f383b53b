"""Headers of tar files against Python's tarfile as the oracle, and lies that it would follow."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.data.shards import scan_shard
from wespeaker.data.tar import DamagedTarError, read_members
from wespeaker.errors import InputError

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=150).filter(
    lambda name: not name.endswith("/") and "//" not in name
)


def members_of(path):
    with open(path, "rb") as file:
        return list(read_members(file))


def header(size=0, **fields):
    """Return a header that may say anything, its checksum right."""
    block = bytearray(tarfile.TarInfo("a.wav").tobuf(tarfile.USTAR_FORMAT))
    places = {"name": 0, "size": 124, "type": 156}
    for field, value in {"size": b"%011o\0" % size if isinstance(size, int) else size, **fields}.items():
        block[places[field] : places[field] + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(names, st.binary(max_size=1200), st.booleans()), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([0, 1.25, 2**40]),
)
def test_members_are_those_of_tarfile(tmp_path_factory, members, layout, mtime):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    try:
        with tarfile.open(path, "w", format=layout) as tar:
            for name, data, is_folder in members:
                info = tarfile.TarInfo(name)
                info.mtime = mtime
                if is_folder:
                    info.type = tarfile.DIRTYPE
                else:
                    info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    except ValueError:  # what ustar cannot hold
        return
    with tarfile.open(path) as tar:
        expected = [(m.name, "folder" if m.isdir() else "file", m.offset_data, m.size) for m in tar]
    assert [tuple(member) for member in members_of(path)] == expected


def test_members_of_a_gnu_tar_are_those_of_tarfile(tmp_path):
    """A size of more than 8 GiB is binary; the file is sparse, so that it takes no room."""
    path, size = tmp_path / "a.tar", 9 << 30
    with open(path, "wb") as file:
        file.write(header(size=b"\x80" + size.to_bytes(11, "big")))
        file.truncate(512 + size + 1024)
    with tarfile.open(path) as tar:
        assert members_of(path) == [("a.wav", "file", tar.getmember("a.wav").offset_data, size)]


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
def test_links_and_devices_are_told_from_files(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = getattr(tarfile, kind), "/etc/passwd"
        tar.addfile(info)
    assert [member.kind for member in members_of(tmp_path / "a.tar")] == ["other"]
    with pytest.raises(InputError, match=r"the member a\.wav is not a plain file; it is refused"):
        scan_shard(tmp_path / "a.tar")


def pax(kind=b"x", **records):
    text = b""
    for key, value in records.items():
        record = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(record) + 2 if len(record) + 2 < 100 else len(record) + 3
        text += str(length).encode() + record
    return header(size=len(text), type=kind) + text.ljust(-(-len(text) // 512) * 512, b"\0")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header(size=b"\xff" * 12), "in place of a number"),  # below zero: tarfile 3.11.7 goes round for ever
        (header(size=b"-0000000001\0"), "in place of a number"),
        (header(size=b"\x80" + b"\xff" * 11), "unexpected end of data"),
        (header(size=b"\x80" + (1 << 60).to_bytes(11, "big"), type=b"L"), "unexpected end of data"),
        (header(size=1 << 20, type=b"x") + bytes(1 << 20), "an extended header of 1048576 bytes"),
        (pax(size=-512) + header(), "b'-512' in place of a number"),
        (pax(size=10**15) + header(), "unexpected end of data"),
        (header(size=12, type=b"x") + b"99999999 a=b".ljust(512, b"\0"), "an extended header that cannot be read"),
        (header(size=12, type=b"x") + b"0 a=b\n".ljust(512, b"\0"), "an extended header that cannot be read"),
        (pax(kind=b"g", path="b.wav") + header(), "one name or size for all members"),
        (header(name=b"\xe4.wav"), "a name that is not UTF-8"),
        (header(size=b"9" * 11 + b"\0"), "in place of a number"),
    ],
)
def test_lies_of_headers_are_refused(tmp_path, data, match):
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    with pytest.raises(DamagedTarError, match=match):
        members_of(tmp_path / "a.tar")


def test_a_chain_of_extended_headers_takes_no_stack(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(pax(comment="x") * 5000 + header() + bytes(1024))
    assert [member.name for member in members_of(path)] == ["a.wav"]


def test_sparse_files_of_pax_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(pax(GNU__sparse__major="1") + header() + bytes(1024))
    assert [member.kind for member in members_of(tmp_path / "a.tar")] == ["other"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"a\.tar is not a plain file but a pipe"):
        scan_shard(Path(tmp_path / "a.tar"))
