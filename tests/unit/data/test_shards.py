import tarfile
from pathlib import Path

import numpy as np
import pytest

from wespeaker.data.audio import read_audio
from wespeaker.data.manifest import read_manifest
from wespeaker.data.shards import index_path, read_shard_list, write_shards
from wespeaker.errors import InputError


@pytest.fixture
def packed(data_dir, tmp_path):
    utterances = read_manifest(data_dir / "vox2_dev")
    paths = write_shards(tmp_path / "shards", utterances, utts_per_shard=10, seed=3)
    return utterances, paths, tmp_path / "shard.list"


def test_every_utterance_once_and_the_same_audio(packed):
    utterances, paths, listed = packed
    assert [path.name for path in paths] == [f"shards_{i:09d}.tar" for i in range(3)]
    members = {utt.key: utt for utt in read_shard_list(listed)}
    assert len(members) == len(utterances)
    for utt in utterances:
        assert members[utt.key].spk == utt.spk
        assert members[utt.key].length == utt.length
        assert np.array_equal(read_audio(members[utt.key].source, 500, 700), read_audio(utt.source, 500, 700))


def test_members_are_wespeakers(packed):
    _, paths, _ = packed
    with tarfile.open(paths[0]) as tar:
        names = tar.getnames()
        assert len(names) == 20
        for spk, wav in zip(names[::2], names[1::2], strict=True):
            assert (Path(spk).suffix, Path(wav).suffix) == (".spk", ".wav")
            assert spk[:-4] == wav[:-4]
            assert tar.extractfile(spk).read().decode() == wav.split("/")[0]


def test_complete_shards_are_kept_and_a_missing_one_made_again(packed):
    utterances, paths, _ = packed
    index_path(paths[1]).unlink()
    before = [path.stat().st_mtime_ns for path in paths]
    write_shards(paths[0].parent, utterances, utts_per_shard=10, seed=3)
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_shards_of_an_earlier_larger_set_are_removed(packed):
    utterances, paths, listed = packed
    write_shards(paths[0].parent, utterances[:5], utts_per_shard=10, seed=3)
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["shards_000000000.tar", "shards_000000000.tar.index"]
    assert len(read_shard_list(listed)) == 5


def test_damage_is_named(packed):
    _, paths, listed = packed
    with open(paths[0], "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"shards_000000000\.tar is shorter than its index says"):
        read_shard_list(listed)
    index_path(paths[0]).write_text("one two\n")
    with pytest.raises(InputError, match=r"\.tar\.index:1: expected key, speaker and four numbers"):
        read_shard_list(listed)
    paths[0].unlink()
    with pytest.raises(InputError, match="does not exist; run stage 2 again"):
        read_shard_list(listed)
