import contextlib
import io
import os
import tarfile
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from conftest import RATE, write_m4a, write_wav

from wespeaker.data.audio import AudioSource, audio_length, read_audio, read_header, read_whole
from wespeaker.data.crops import fit_length, read_crop
from wespeaker.data.measure import measure
from wespeaker.errors import InputError


@pytest.fixture
def wav():
    return (0.3 * np.random.default_rng(0).standard_normal(2 * RATE)).clip(-1, 1).astype(np.float32)


@pytest.fixture(params=["wav", "flac"])
def sources(request, tmp_path, wav):
    """The same audio as a file and as a member of a tar file."""
    path = tmp_path / f"a.{request.param}"
    soundfile.write(path, wav, RATE, subtype="PCM_16")
    shard = tmp_path / "shard.tar"
    data = path.read_bytes()
    with tarfile.open(shard, "w") as tar:
        for name, content in (("a.spk", b"id1"), (path.name, data), ("b.spk", b"id2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(shard) as tar:
        member = tar.getmember(path.name)
    return AudioSource(str(path)), AudioSource(str(shard), member.offset_data, member.size)


def test_spans_of_files_and_of_tar_members(sources, wav):
    for source in sources:
        assert audio_length(source) == (len(wav), RATE)
        for start, count in ((0, 100), (1234, 5000), (len(wav) - 10, 10), (len(wav) - 10, 100)):
            expected = wav[start : start + count]
            np.testing.assert_allclose(read_audio(source, start, count), expected, atol=1 / 32768)
        assert len(read_audio(source)) == len(wav)


def test_the_first_channel_is_read(tmp_path, wav):
    path = write_wav(tmp_path / "s.wav", np.stack([wav, -wav, 0 * wav], axis=1))
    np.testing.assert_allclose(read_audio(AudioSource(str(path))), wav, atol=1 / 32768)


def test_bad_files_name_themselves(tmp_path, wav):
    with pytest.raises(InputError, match=r"no\.wav does not exist"):
        audio_length(AudioSource(str(tmp_path / "no.wav")))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        audio_length(AudioSource(str(tmp_path)))
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"this is not audio" * 100)
    with pytest.raises(InputError, match=r"garbage\.wav cannot be read as audio"):
        read_audio(AudioSource(str(garbage)))
    empty = write_wav(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(InputError, match="holds no audio"):
        audio_length(AudioSource(str(empty)))
    short = write_wav(tmp_path / "short.wav", wav[:100])
    with pytest.raises(InputError, match="shorter than its entry says"):
        read_audio(AudioSource(str(short)), 1000, 10)


def test_a_file_that_ends_too_early_is_an_error_and_not_repeated(tmp_path, wav):
    """Its header says less, or as much and the bytes are gone; a crop of what is there would be half of it twice."""
    path = write_wav(tmp_path / "a.wav", wav[:20_000])
    early = r"a\.wav ends (at|before) sample \d+; it is shorter than its entry says"
    with pytest.raises(InputError, match=early):
        read_crop(AudioSource(str(path)), (32_000, RATE), num_samples=32_000, rate=RATE, rng=np.random.default_rng(0))
    path = write_wav(tmp_path / "a.wav", wav)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(InputError, match=early):
        read_crop(AudioSource(str(path)), (32_000, RATE), num_samples=32_000, rate=RATE, rng=np.random.default_rng(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_samples_that_are_not_finite_are_an_error(tmp_path, bad):
    samples = np.zeros(1000, dtype=np.float32)
    samples[500] = bad
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav holds samples that are not finite"):
        read_crop(
            AudioSource(str(tmp_path / "a.wav")), (1000, RATE), num_samples=2000, rate=RATE,
            rng=np.random.default_rng(0),
        )  # fmt: skip


def test_fit_length_cuts_and_repeats():
    assert fit_length(np.arange(3.0), 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert fit_length(np.arange(5.0), 2).tolist() == [0, 1]


@pytest.mark.parametrize("speed", [Fraction(1), Fraction(9, 10), Fraction(11, 10)])
@pytest.mark.parametrize("rate", [RATE, 8000])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0])
def test_crops_have_the_asked_length(sources, speed, rate, seconds):
    source = sources[1]
    rng = np.random.default_rng(0)
    crop = read_crop(source, audio_length(source), num_samples=int(seconds * rate), rate=rate, speed=speed, rng=rng)
    assert crop.shape == (int(seconds * rate),)
    assert crop.dtype == np.float32


def test_crop_positions_reach_both_ends(tmp_path):
    path = write_wav(tmp_path / "ramp.wav", np.arange(1000) / 32768)
    source = AudioSource(str(path))
    rng = np.random.default_rng(0)
    starts = [
        round(read_crop(source, (1000, RATE), num_samples=990, rate=RATE, rng=rng)[0] * 32768) for _ in range(300)
    ]
    assert set(starts) == set(range(11))


def test_m4a_is_decoded_as_a_file_and_as_a_member(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    write_m4a(tmp_path / "a.m4a", tone)
    data = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "members").write_bytes(b"before" + data + b"after")
    file, member = AudioSource(str(tmp_path / "a.m4a")), AudioSource(str(tmp_path / "members"), 6, len(data))
    whole = read_audio(file)
    assert audio_length(file) == audio_length(member) == (len(whole), RATE)
    assert len(whole) == pytest.approx(RATE, abs=2048)
    assert np.sqrt(np.mean(whole[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    np.testing.assert_array_equal(read_audio(member, 5000, 300), whole[5000:5300])
    np.testing.assert_array_equal(read_whole(member)[0], whole)


def test_damaged_m4a_is_an_error(tmp_path):
    write_m4a(tmp_path / "a.m4a", np.zeros(RATE))
    data = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(data[:100])
    with pytest.raises(InputError, match=r"a\.m4a cannot be decoded \("):
        audio_length(AudioSource(str(tmp_path / "a.m4a")))
    (tmp_path / "a.m4a").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.m4a has no audio from sample 999999 on"):
        read_audio(AudioSource(str(tmp_path / "a.m4a")), 999999, 5)


def test_a_file_shorter_than_what_is_known_of_it_is_named(tmp_path, wav):
    path = write_wav(tmp_path / "a.wav", wav)
    header = read_header(AudioSource(str(path)))
    source = AudioSource(str(path), pcm=header.pcm)
    path.write_bytes(path.read_bytes()[:-1000])
    assert len(read_audio(source, 0, 100)) == 100
    with pytest.raises(InputError, match=rf"a\.wav ends before sample {len(wav)}; it is shorter than its entry says"):
        read_audio(source)
    with pytest.raises(InputError, match="has no audio from sample 99999 on"):
        read_audio(source, 99999, 10)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.wav does not exist"):
        read_audio(source, 0, 10)


def test_samples_that_are_not_finite_stop_a_whole_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan, 0.1]), RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav holds samples that are not finite"):
        read_whole(AudioSource(str(tmp_path / "a.wav")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_and_standard_input_are_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.wav")
    for read in (read_header, read_audio, read_whole):
        with pytest.raises(InputError, match=r"a\.wav is not a plain file but a pipe"):
            read(AudioSource(str(tmp_path / "a.wav")))
    with pytest.raises(InputError, match="not a plain file"):
        measure(str(tmp_path / "a.wav"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="- does not exist"):
        measure("-")
    with pytest.raises(InputError, match="is no path"):
        read_header(AudioSource("a\0.wav"))


def test_a_name_says_nothing_about_the_format(tmp_path, wav):
    """libsndfile takes what is called .raw, .vox or .gsm for such audio, whatever is in it."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for suffix in ("raw", "vox", "gsm"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"this is not audio" * 100)
        with pytest.raises(InputError, match="cannot be read as audio"):
            read_header(AudioSource(str(path)))
        path.write_bytes(write_wav(tmp_path / "a.wav", wav).read_bytes())
        assert audio_length(AudioSource(str(path))) == (len(wav), RATE)
        assert measure(str(path)).num_samples == len(wav)
    assert before is None or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("rate", [0, 384_001, 2**31, 2**32 - 1])
def test_an_impossible_sample_rate_is_an_error(tmp_path, wav, rate):
    path = write_wav(tmp_path / "a.wav", wav)
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a header that says {rate} Hz|cannot be read as audio"):
        audio_length(AudioSource(str(path)))


def test_a_length_that_lies_takes_no_memory(tmp_path, wav):
    """A FLAC header that promises 2**36 - 1 samples: 256 GiB as float32."""
    soundfile.write(tmp_path / "a.flac", wav, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(data)
    source = AudioSource(str(tmp_path / "a.flac"))
    assert audio_length(source)[0] == 2**36 - 1
    tracemalloc.start()
    try:
        for read in (lambda: read_whole(source)[0], lambda: read_audio(source), lambda: read_audio(source, 0, 2**40)):
            with contextlib.suppress(InputError):
                assert len(read()) == len(wav)
        with pytest.raises(InputError, match=r"is damaged|cannot be read"):
            measure(str(source))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
