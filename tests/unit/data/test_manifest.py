import json

import pytest

from wespeaker.data.manifest import read_bank, read_manifest, read_pairs, read_raw_list, read_scp
from wespeaker.errors import InputError


def test_manifest_round_trip(data_dir):
    utterances = read_manifest(data_dir / "vox2_dev")
    assert len(utterances) == 24
    assert {utt.spk for utt in utterances} == {f"id{n:05d}" for n in range(12, 18)}
    assert read_raw_list(data_dir / "vox2_dev" / "raw.list") == utterances
    spk2utt = (data_dir / "vox2_dev" / "spk2utt").read_text().splitlines()
    assert spk2utt[0].split() == ["id00012"] + [utt.key for utt in utterances if utt.spk == "id00012"]
    durations = read_pairs(data_dir / "vox2_dev" / "utt2dur", "durations")
    assert float(durations[utterances[0].key]) == pytest.approx(utterances[0].seconds, abs=1e-6)


def test_a_raw_list_of_wespeaker_has_no_lengths(data_dir, tmp_path):
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    plain = [{k: json.loads(line)[k] for k in ("key", "spk", "wav")} for line in lines]
    (tmp_path / "raw.list").write_text("\n".join(map(json.dumps, plain)))
    assert read_raw_list(tmp_path / "raw.list") == read_raw_list(data_dir / "vox2_dev" / "raw.list")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("a /x.wav\nb\n", r"wav\.scp:2: expected 'key value'"),
        ("a /x.wav\n\na /y.wav\n", r"wav\.scp:3: a is in .* twice"),
        ("a ffmpeg -i x.m4a - |\n", "shell command .* commands are not run"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path, text, match):
    (tmp_path / "wav.scp").write_text(text)
    with pytest.raises(InputError, match=match):
        read_scp(tmp_path / "wav.scp")


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match=r"wav\.scp .* does not exist; run the stage"):
        read_scp(tmp_path / "wav.scp")
    (tmp_path / "wav.scp").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_scp(tmp_path / "wav.scp")


def test_the_two_files_must_agree(tmp_path):
    (tmp_path / "wav.scp").write_text("a /x.wav\nb /y.wav\n")
    (tmp_path / "utt2spk").write_text("a s\n")
    with pytest.raises(InputError, match="must have the same keys; b is in one only"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("not json", "raw.list:1: expected"),
        ('{"key": "a", "spk": "s"}', "raw.list:1: expected"),
        ('{"key": "a", "spk": "s", "wav": "rm -rf / |"}', "raw.list:1: .* shell command"),
    ],
)
def test_bad_raw_lists(tmp_path, line, match):
    (tmp_path / "raw.list").write_text(line + "\n")
    with pytest.raises(InputError, match=match):
        read_raw_list(tmp_path / "raw.list")


def test_bank_kinds(data_dir):
    assert sorted(file.kind for file in read_bank(data_dir / "musan" / "wav.scp")) == ["music", "noise", "speech"]
    assert all(file.length[1] == 16000 for file in read_bank(data_dir / "rirs" / "wav.scp"))
