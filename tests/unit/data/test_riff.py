"""The span reader of 16-bit mono wav against libsndfile."""

import io
import struct

import numpy as np
import pytest
import soundfile

from wespeaker.data.audio import AudioSource, read_audio, read_header
from wespeaker.data.riff import find_pcm16

SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 5001).astype("<i2")
PCM = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
GUID = bytes.fromhex("0100000000001000800000aa00389b71")
EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 32000, 2, 16, 22, 16, 4) + GUID


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def wave(*chunks):
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


DATA = chunk(b"data", SAMPLES.tobytes())
LAYOUTS = {
    "plain": wave(chunk(b"fmt ", PCM), DATA),
    "LIST before data": wave(chunk(b"fmt ", PCM), chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf5")), DATA),
    "a chunk of odd size before data": wave(chunk(b"fmt ", PCM), chunk(b"odd ", b"1234567"), DATA),
    "10 kB of junk before fmt": wave(chunk(b"JUNK", bytes(10_001)), chunk(b"fmt ", PCM), DATA),
    "fmt of 18 bytes": wave(chunk(b"fmt ", PCM + b"\0\0"), DATA),
    "chunks after data": wave(chunk(b"fmt ", PCM), DATA, chunk(b"LIST", b"INFO" + b"\1" * 400)),
    "extensible": wave(chunk(b"fmt ", EXTENSIBLE), chunk(b"fact", struct.pack("<I", len(SAMPLES))), DATA),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_spans_equal_libsndfile_bit_for_bit(layout, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"before" + LAYOUTS[layout] + b"after!")
    member = AudioSource(str(path), 6, len(LAYOUTS[layout]))
    header = read_header(member)
    assert header[:5] == (len(SAMPLES), 16000, 1, "WAV", "PCM_16")
    assert header.pcm is not None
    fast = AudioSource(member.path, member.offset, member.size, header.pcm)
    expected, rate = soundfile.read(io.BytesIO(LAYOUTS[layout]), dtype="float32")
    assert (len(expected), rate) == (len(SAMPLES), 16000)
    rng = np.random.default_rng(1)
    for start, count in [(0, None), (5000, 9), *rng.integers(0, 5001, (30, 2))]:
        end = None if count is None else start + count
        if start < len(SAMPLES) and count != 0:
            np.testing.assert_array_equal(read_audio(fast, int(start), count), expected[start:end])


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("stereo", wave(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 16000, 64000, 4, 16)), DATA)),
        ("24 bits", wave(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 48000, 3, 24)), DATA)),
        ("float", wave(chunk(b"fmt ", struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)), DATA)),
        ("other GUID", wave(chunk(b"fmt ", EXTENSIBLE[:24] + b"\3" + GUID[1:]), DATA)),
        ("data before fmt", wave(DATA, chunk(b"fmt ", PCM))),
        ("no data", wave(chunk(b"fmt ", PCM), chunk(b"data", b""))),
        ("a stream", wave(chunk(b"fmt ", PCM)) + b"data\xff\xff\xff\xff" + SAMPLES.tobytes()),
        ("cut short", LAYOUTS["plain"][:-2]),
        ("cut in a chunk", LAYOUTS["plain"][:38]),
        ("big-endian", b"RIFX" + LAYOUTS["plain"][4:]),
        ("nothing", b""),
    ],
)
def test_everything_else_is_left_to_libsndfile(what, data):
    assert find_pcm16(io.BytesIO(data), len(data)) is None


def test_zeros_after_the_header_are_not_walked_through():
    """A file that was given its size before its samples: each eight zeros are a chunk without name and length."""

    class Counted(io.BytesIO):
        reads = 0

        def read(self, *args):
            self.reads += 1
            return super().read(*args)

    data = wave(chunk(b"fmt ", PCM)) + bytes(1 << 20)
    file = Counted(data)
    assert find_pcm16(file, len(data)) is None
    assert file.reads < 2000
