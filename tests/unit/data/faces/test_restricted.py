"""The restricted unpickler: what Python's own pickle writes comes back; what does anything else is refused."""

import os
import pickle
import struct
import sys

import numpy as np
import pytest
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.data.faces.restricted import load_restricted
from wespeaker.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def plain(value):
    """Return a result with its views of the file as bytes and its arrays as (type, list)."""
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    return bytes(value) if isinstance(value, memoryview) else value


def loaded(value, protocol):
    return plain(load_restricted(pickle.dumps(value, protocol), "x.bin"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=300) | st.text(max_size=20),
    lambda items: st.lists(items, max_size=5) | st.lists(items, max_size=5).map(tuple),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_plain_data_come_back_from_every_protocol(protocol, value):
    assert loaded(value, protocol) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_and_scalars_come_back_from_old_and_new_numpy(protocol, core):
    arrays = [
        np.array([True, False]),
        np.arange(6, dtype=">u2").reshape(2, 3),
        np.asfortranarray(np.eye(3, dtype=np.int8)),
    ]
    value = (arrays, arrays[0], [np.True_, np.int64(-5)], np.zeros(0, np.uint8))
    data = pickle.dumps(value, protocol)
    written = b"numpy._core" if b"numpy._core" in data else b"numpy.core"
    renamed = data.replace(written, b"numpy." + core.encode()) if protocol < 4 else data
    found = load_restricted(renamed, "x.bin")
    for have, want in zip(found[0], arrays, strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)
    assert found[1] is found[0][0]
    assert found[2] == [True, -5]
    assert found[3].shape == (0,)


# What cPickle of Python 2.7 writes for ([b"\xff\xd8a'\n", b""], [True, False]), from the opcodes of PEP 307.
PYTHON_2 = {
    0: b"((lp1\nS'\\xff\\xd8a\\'\\n'\np2\naS''\np3\na(lp4\nI01\naI00\natp5\n.",
    1: b"(]q\x01(U\x05\xff\xd8a'\nq\x02U\x00q\x03e]q\x04(I01\nI00\netq\x05.",
    2: b"\x80\x02]q\x01(U\x05\xff\xd8a'\nq\x02T\x00\x00\x00\x00q\x03e]q\x04(\x88\x89e\x86q\x05.",
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_strings_of_python_2_are_bytes(protocol):
    expected = ([b"\xff\xd8a'\n", b""], [True, False])
    assert pickle.loads(PYTHON_2[protocol], encoding="bytes") == expected  # so the bytes above are right
    assert plain(load_restricted(PYTHON_2[protocol], "lfw.bin")) == expected


def test_an_array_of_python_2_comes_back():
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x03\x85"
        b"cnumpy\ndtype\nq\x04U\x02i2K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06\x01\x00\x02\x00\xff\xfftb."
    )
    assert plain(load_restricted(data, "lfw.bin")) == ("<i2", [1, 2, -1])


class Call:
    """Something that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), r"posix\.system"),
        (eval, ("open('ran', 'w')",), r"(builtins|__builtin__)\.eval"),
        (getattr, (Call(__import__, "os"), "system"), r"(builtins|__builtin__)\.(getattr|__import__)"),
        (np.load, ("ran",), r"numpy\.load"),
        (bytearray, (10,), r"(builtins|__builtin__)\.bytearray"),
    ],
)
def test_nothing_is_called(tmp_path, monkeypatch, protocol, function, arguments, name):
    monkeypatch.chdir(tmp_path)
    for value in (Call(function, *arguments), ([Call(function, *arguments)], [True])):
        with pytest.raises(InputError, match=rf"evil.bin: byte \d+ asks for {name}; only plain lists.*nothing was run"):
            load_restricted(pickle.dumps(value, protocol), "evil.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", r"asks for os\.system;"),
        (b"\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", r"asks for os\.system;"),
        (b"\x8c\x04os\n\x1b\x8c\x06system\x93.", r"asks for os\\n\\x1b\.system;"),
        (b"(" + b"]" * 5000 + b"a" * 4999 + b"\x8c\x01x\x93.", r"asks for <list>\.x;"),
        (b"(ios\nsystem\n.", "asks for the opcode INST;"),
        (b"(S'x'\no.", "asks for the opcode OBJ;"),
        (b"cnumpy\nndarray\n)\x81.", "asks for the opcode NEWOBJ;"),
        (b"cnumpy\nndarray\nK\x01\x85R.", "is no whole pickle .*TypeError"),
        (b"P1\n.", "asks for the opcode PERSID;"),
        (b"\x82\x01.", "asks for the opcode EXT1;"),
        (b"\x97.", "asks for the opcode NEXT_BUFFER;"),
        (b"}.", "asks for the opcode EMPTY_DICT;"),
        (b"G\0\0\0\0\0\0\0\0.", "asks for the opcode BINFLOAT;"),
        (pickle.dumps(np.zeros(2)), "asks for an array of numpy's type f8;"),
        (pickle.dumps(np.array([None])), "asks for an array of numpy's type O8;"),
        (pickle.dumps(bytes(3), 2).replace(b"latin1", b"zlib\0\0"), "asks for the encoding"),
        (b"\x8a\xff" + bytes(255) + b".", "asks for a whole number of 255 bytes;"),
        (b"I" + b"9" * 5000 + b"\n.", "asks for a whole number of 5000 digits;"),
        (b"", r"byte 0 is no whole pickle \(ValueError: 1 bytes are wanted, 0 are left\); copy it"),
        (b"\x80\x04]\x94.extra", None),
        (b"\x80\x04]\x94", "byte 4 is no whole pickle"),
        (b"(K\x01K\x02.", "is no whole pickle"),
        (b"K\x01a.", "is no whole pickle"),
        (b"h\x07.", "is no whole pickle .KeyError: 7"),
        (b"(]t0.", "asks for the opcode POP;"),
        (b"\xff.", "unknown opcode"),
        (b"S'no end'", "a line does not end"),
        (b"Sno quotes\n.", "a string without quotes"),
    ],
)
def test_other_opcodes_and_damage_are_refused(data, sentence):
    if sentence is None:
        assert load_restricted(data, "x.bin") == []
    else:
        with pytest.raises(InputError, match=sentence):
            load_restricted(data, "x.bin")


CLAIM = 1 << 38  # a quarter of a terabyte
FRAME_OF_DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNK\x00K\x00K\x00tb"
BOMBS = {
    "LONG_BINPUT": b"]r\xf0\xff\xff\x7f.",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", CLAIM) + b".",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", CLAIM) + b".",
    "BINSTRING": b"T" + struct.pack("<i", -5) + b".",
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "FRAME": b"\x95" + struct.pack("<Q", CLAIM) + b"].",
    "array": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01\x8a\x06"
    + struct.pack("<Q", CLAIM)[:6] + b"\x85" + FRAME_OF_DTYPE + b"\x89U\x01xtb.",
    "encode": b"c_codecs\nencode\nq\0X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"X\6\0\0\0latin1\x86q\1"
    + b"Rh\0h\1" * 3000 + b"R.",
    "laughs": b"(]q\0" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 60)) + b"l.",
    "deep": b"]" * 100_000 + b"a" * 99_999 + b".",
}  # fmt: skip
LIMITED = """
import resource, sys
from pathlib import Path
from wespeaker.data.faces.restricted import load_restricted
from wespeaker.errors import InputError
limit = int(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        load_restricted(Path(path).read_bytes(), path)
        print("loaded")
    except InputError as error:
        print(str(error).partition(": ")[2])
sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > limit << 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is measured in kibibytes of Linux")
def test_no_file_takes_much_memory(tmp_path):
    paths = []
    for name, data in BOMBS.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    done = run_command(sys.executable, "-c", LIMITED, 100, *paths)
    said = dict(zip(BOMBS, done.stdout.splitlines(), strict=True))
    for name in ("laughs", "LONG_BINPUT", "deep"):  # small as they are
        assert said.pop(name) == "loaded"
    for name in ("BYTEARRAY8", "BINBYTES8", "BINSTRING", "LONG4"):
        assert "bytes are wanted" in said.pop(name)
    assert said.pop("FRAME") == "loaded"  # what it claims is not used
    assert "an array of shape (274877906944,) in 1 bytes" in said.pop("array")
    assert "asks for more bytes than the file has" in said.pop("encode")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_of_endless_small_objects_is_refused(monkeypatch):
    monkeypatch.setattr("wespeaker.data.faces.restricted.MAX_OPCODES", 1000)
    assert len(load_restricted(b"(" + b"]" * 997 + b"l.", "x.bin")) == 997
    with pytest.raises(InputError, match="byte 999 asks for more than 1000 steps"):
        load_restricted(b"(" + b"]" * 998 + b"l.", "x.bin")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_whatever_the_bytes_are_there_is_a_value_or_a_sentence(protocol):
    rng = np.random.default_rng(protocol)
    value = ([b"abc", b"\xff\x00" * 9, np.arange(5)], np.array([True, False]), [np.True_, "t", -5, 2**40])
    data = np.frombuffer(pickle.dumps(value, protocol), np.uint8)
    refused = 0
    for _ in range(1000):
        changed = data.copy()
        changed[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        try:
            load_restricted(changed.tobytes(), "x.bin")
        except InputError:
            refused += 1
    assert refused > 500
