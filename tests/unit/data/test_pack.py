"""Stage 2: what goes into the shards, that it is kept or made again, and what stops it."""

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, ROOT, write_m4a

from wespeaker.data.audio import AudioSource, audio_length, read_audio
from wespeaker.data.manifest import Utterance, read_manifest, write_manifest
from wespeaker.data.pack import FIRST_CHANNEL, REDUCED, RESAMPLED, write_shards
from wespeaker.data.shards import index_path, read_shard_list
from wespeaker.data.utterances import make_table
from wespeaker.errors import InputError


def noise(number, count=6000, channels=1):
    wav = np.random.default_rng(number).integers(-9000, 9000, (count, channels)).astype(np.int16)
    return wav[:, 0] if channels == 1 else wav


def utterance(path, spk="s1"):
    source = AudioSource(str(path))
    return Utterance(f"{spk}/v/{path.name}", spk, source, audio_length(source))


def write_audio(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def pack(folder, utterances, **options):
    return write_shards(
        folder / "shards", utterances, **{"utts_per_shard": 10, "seed": 3, "rate": RATE, "num_jobs": 1, **options}
    )


@pytest.fixture
def packed(data_dir, tmp_path):
    utterances = read_manifest(data_dir / "vox2_dev")
    return utterances, pack(tmp_path, utterances).shards, tmp_path / "shard.list"


def test_every_utterance_once_and_the_same_audio(packed):
    utterances, paths, listed = packed
    assert [path.name for path in paths] == [f"shards_{i:09d}.tar" for i in range(3)]
    table = read_shard_list(listed)
    assert len(table) == len(utterances)
    for member, utt in zip(table, utterances, strict=True):
        assert (member.key, member.spk, member.length) == (utt.key, utt.spk, utt.length)
        assert member.source.pcm is not None
        np.testing.assert_array_equal(read_audio(member.source, 500, 700), read_audio(utt.source, 500, 700))


def test_members_are_wespeakers_and_wav_is_copied(packed):
    utterances, paths, _ = packed
    with tarfile.open(paths[0]) as tar:
        names = tar.getnames()
        assert len(names) == 20
        for spk, wav in zip(names[::2], names[1::2], strict=True):
            assert (spk[-4:], wav[-4:], spk[:-4]) == (".spk", ".wav", wav[:-4])
            utt = utterances.find(wav[:-4])
            assert tar.extractfile(spk).read().decode() == utt.spk
            assert tar.extractfile(wav).read() == Path(utt.source.path).read_bytes()


def kinds(folder):
    """One utterance of each kind of source."""
    return [
        utterance(path, spk=f"s{number % 2}")
        for number, path in enumerate(
            [
                write_audio(folder / "a.wav", noise(0)),
                write_audio(folder / "b.flac", noise(1)),
                write_m4a(folder / "c.m4a", noise(2)),
                write_audio(folder / "d.wav", noise(3, 3001), rate=8000),
                write_audio(folder / "e.wav", noise(4, channels=2)),
                write_audio(folder / "f.wav", noise(5) / 32768, subtype="FLOAT"),
                write_audio(folder / "g.flac", noise(6) / 32768, subtype="PCM_24"),
            ]
        )
    ]


@pytest.mark.parametrize("member_format", ["wav", "flac"])
def test_every_kind_of_source_in_both_formats(tmp_path, member_format):
    utterances = kinds(tmp_path)
    packed = pack(tmp_path, utterances, member_format=member_format)
    copied_24 = member_format == "flac"
    assert packed.changed == {RESAMPLED: 1, FIRST_CHANNEL: 1, REDUCED: 1 if copied_24 else 2}
    assert packed.num_utts == 7
    assert packed.seconds == pytest.approx(sum(utt.seconds for utt in utterances), abs=1 / RATE)
    for member, utt in zip(read_shard_list(tmp_path / "shard.list"), make_table(utterances), strict=True):
        data = Path(member.source.path).read_bytes()[member.source.offset :][: member.source.size]
        wav, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        assert (len(wav), rate) == member.length == (-(-utt.length[0] * RATE // utt.length[1]), RATE)
        np.testing.assert_array_equal(wav, read_audio(member.source))
        if utt.length[1] == RATE:
            np.testing.assert_array_equal(wav, read_audio(utt.source))
        if utt.source.path.endswith(member_format) and member.key.endswith(("a.wav", "b.flac", "g.flac")):
            assert data == Path(utt.source.path).read_bytes()


def test_the_first_channel_is_taken(tmp_path):
    pack(tmp_path, [utterance(write_audio(tmp_path / "e.wav", noise(4, channels=2)))])
    (member,) = read_shard_list(tmp_path / "shard.list")
    np.testing.assert_array_equal(read_audio(member.source) * 32768, noise(4, channels=2)[:, 0])


def test_any_number_of_processes_makes_the_same_bytes(tmp_path):
    utterances = kinds(tmp_path)
    one, two = (pack(tmp_path / str(jobs), utterances, num_jobs=jobs, utts_per_shard=2) for jobs in (1, 2))
    for a, b in zip(one.shards, two.shards, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert index_path(a).read_bytes() == index_path(b).read_bytes()
    assert one.changed == two.changed


def test_complete_shards_are_kept_and_others_made_again(packed):
    utterances, paths, listed = packed
    index_path(paths[1]).unlink()
    with open(paths[2], "r+b") as file:
        file.truncate(paths[2].stat().st_size - 512)
    (listed.parent / "shards" / ".shards_000000007.99.partial.tar").write_bytes(b"half-written")
    before = [path.stat().st_mtime_ns for path in paths]
    pack(listed.parent, utterances)
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    assert len(list((listed.parent / "shards").iterdir())) == 6
    pack(listed.parent, utterances, member_format="flac")
    assert all(utt.source.pcm is None for utt in read_shard_list(listed))


def test_shards_of_an_earlier_larger_set_are_removed(packed):
    utterances, paths, listed = packed
    pack(listed.parent, utterances[:5])
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["shards_000000000.tar", "shards_000000000.tar.index"]
    assert len(read_shard_list(listed)) == 5


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_a_damaged_file_is_named_and_nothing_is_listed(packed, num_jobs):
    """Also where a worker process finds it."""
    utterances, paths, listed = packed
    bad = write_audio(listed.parent / "bad.wav", noise(0))
    utts = [*utterances[:15], utterance(bad)]
    bad.write_bytes(b"RIFF and nothing more")
    with pytest.raises(InputError, match=r"s1/v/bad\.wav cannot be packed: .*bad\.wav cannot be read as audio"):
        pack(listed.parent, utts, num_jobs=num_jobs, seed=4)
    assert not listed.exists()
    assert not list(paths[0].parent.glob(".*"))


def not_finite(path):
    wav = noise(0) / 32768
    wav[77] = np.nan
    return write_audio(path, wav, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (not_finite, r"a\.wav holds samples that are not finite"),
        (lambda path: write_audio(path, noise(0, 5999)), r"a\.wav has 5999 samples at 16000 Hz, its entry says 6000"),
    ],
)
def test_what_cannot_be_packed(tmp_path, make, match):
    utt = utterance(write_audio(tmp_path / "a.wav", noise(0)))
    make(tmp_path / "a.wav")
    with pytest.raises(InputError, match=match):
        pack(tmp_path, [utt])


def test_a_damaged_frame_of_a_flac_that_is_copied_shows(tmp_path):
    utt = utterance(write_audio(tmp_path / "a.flac", noise(0, 60000)))
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(InputError, match=r"s1/v/a\.flac cannot be packed"):
        pack(tmp_path, [utt], member_format="flac")


def test_a_key_that_leaves_its_folder_is_refused(tmp_path):
    path = write_audio(tmp_path / "a.wav", noise(0))
    with pytest.raises(InputError, match=r"the member \.\./a\.wav would lie outside"):
        pack(tmp_path, [Utterance("../a.wav", "s", AudioSource(str(path)), (6000, RATE))])


def test_a_killed_call_is_gone_on_with(tmp_path):
    """The tool is killed between two shards; the next call keeps what is complete."""
    utterances = [utterance(write_audio(tmp_path / f"{n:03d}.flac", noise(n, 40000))) for n in range(60)]
    write_manifest(tmp_path, utterances)
    command = [sys.executable, ROOT / "tools" / "make_shards.py", "--data_dir", tmp_path, "--utts_per_shard", "1"]
    process = subprocess.Popen([*command, "--nj", "1"], stdout=subprocess.PIPE)
    shards = tmp_path / "shards"
    while process.poll() is None and len(list(shards.glob("shards_*.index"))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "shard.list").exists()
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("shards_*.index")}
    assert 3 <= len(kept) < 60
    pack(tmp_path, utterances, utts_per_shard=1, seed=42)
    assert len(read_shard_list(tmp_path / "shard.list")) == 60
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(shards.glob(".*"))


def test_the_tool_counts_what_it_changed(tool, tmp_path):
    write_manifest(tmp_path, kinds(tmp_path))
    done = tool("make_shards", "--data_dir", tmp_path, "--nj", "2", "--utts_per_shard", "4")
    assert done.returncode == 0, done.stderr
    for text in ("1 utterances resampled", "1 utterances of several channels", "2 utterances reduced to 16 bits"):
        assert text in done.stdout
    assert "7 utterances, 0.0 hours, in 2 shards, all read back" in done.stdout
    (tmp_path / "a.wav").write_bytes(b"x")
    for path in (tmp_path / "shards").glob("shards_*.index"):
        path.unlink()
    done = tool("make_shards", "--data_dir", tmp_path, "--nj", "1", "--utts_per_shard", "4")
    assert done.returncode == 1
    assert "make_shards.py: error: s0/v/a.wav cannot be packed: " in done.stderr
    assert "Traceback" not in done.stderr
