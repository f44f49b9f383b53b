import json
import os
import shlex

import numpy as np
import pytest
from conftest import write_wav

from wespeaker.data.audio import AudioSource, read_audio
from wespeaker.data.manifest import read_manifest, read_pairs, read_raw_list, read_scp, write_manifest
from wespeaker.errors import InputError


def test_manifest_round_trip(data_dir):
    utterances = read_manifest(data_dir / "vox2_dev")
    assert len(utterances) == 24
    assert {utt.spk for utt in utterances} == {f"id{n:05d}" for n in range(12, 18)}
    assert list(read_raw_list(data_dir / "vox2_dev" / "raw.list")) == list(utterances)
    spk2utt = (data_dir / "vox2_dev" / "spk2utt").read_text().splitlines()
    assert spk2utt[0].split() == ["id00012"] + [utt.key for utt in utterances if utt.spk == "id00012"]
    durations = read_pairs(data_dir / "vox2_dev" / "utt2dur", "durations")
    assert float(durations[utterances[0].key]) == pytest.approx(utterances[0].seconds, abs=1e-6)


def test_a_raw_list_of_wespeaker_has_no_lengths(data_dir, tmp_path):
    lines = (data_dir / "vox2_dev" / "raw.list").read_text().splitlines()
    plain = [{k: json.loads(line)[k] for k in ("key", "spk", "wav")} for line in lines]
    (tmp_path / "raw.list").write_text("\n".join(map(json.dumps, plain)))
    assert list(read_raw_list(tmp_path / "raw.list")) == list(read_raw_list(data_dir / "vox2_dev" / "raw.list"))


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
        ("not json", "raw.list:1 is not valid JSON"),
        ('"text"', "raw.list:1: expected"),
        ('{"key": "a", "spk": "s"}', "raw.list:1: expected"),
        ('{"key": "a", "spk": "s", "wav": "rm -rf / |"}', "raw.list:1: a is a shell command"),
        ('{"key": "a", "spk": "s", "wav": "x.wav", "num_samples": 9}', "raw.list:1: expected"),
        ('{"key": "a", "spk": "s", "feat": "x.ark:5"}', r"raw.list:1: this is a list of features .*make_raw_list\.py"),
        ('{"key": "a", "spk": "s", "wav": "no/x.wav"}', r"raw.list:1: no/x\.wav does not exist in /"),
        ("[" * 100_000, "raw.list:1 is not valid JSON: maximum recursion"),
        ('{"key": "a", "spk": "s", "wav": "x.wav", "num_samples": Infinity, "sample_rate": 1}', "raw.list:1: expected"),
        ('{"key": "a", "spk": "s", "wav": "x.wav", "num_samples": 5, "sample_rate": 0}', "raw.list:1: .* at 0 Hz"),
        (
            '{"key": "a\\nb", "spk": "s", "wav": "x", "num_samples": 5, "sample_rate": 8}',
            "raw.list:1: .*without blanks",
        ),
        ('{"key": "\\ud800", "spk": "s", "wav": "x", "num_samples": 5, "sample_rate": 8}', "raw.list:1: .*UTF-8"),
        ('{"key": "a", "spk": "s", "wav": "x\\u0000.wav"}', "raw.list:1: .* is no path of a file"),
    ],
)
def test_bad_raw_lists(tmp_path, line, match):
    (tmp_path / "raw.list").write_text(line + "\n")
    with pytest.raises(InputError, match=match):
        read_raw_list(tmp_path / "raw.list")


def make_folder(folder, entries):
    """Write wav.scp of key to entry, and one speaker for all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wav.scp").write_text("".join(f"{key} {entry}\n" for key, entry in entries.items()))
    (folder / "utt2spk").write_text("".join(f"{key} s\n" for key in entries))
    return folder


def test_headers_are_read_once(tmp_path):
    """Lengths come from utt2num_samples until wav.scp is changed by hand."""
    wav = write_wav(tmp_path / "a.wav", np.zeros(800))
    folder = make_folder(tmp_path / "d", {"a": wav})
    write_manifest(folder, read_manifest(folder))
    assert (folder / "utt2num_samples").read_text() == "a 800 16000\n"
    wav.unlink()
    assert read_manifest(folder)[0].length == (800, 16000)
    (folder / "utt2num_samples").write_text("a many\n")
    with pytest.raises(InputError, match=r"utt2num_samples:1: expected 'key samples rate', found 'a many'"):
        read_manifest(folder)
    os.utime(folder / "utt2num_samples", ns=(0, 0))
    with pytest.raises(InputError, match=r"a\.wav does not exist"):
        read_manifest(folder)


def test_commands_run_only_when_allowed_and_once(tmp_path, tool):
    wav = write_wav(tmp_path / "a b.wav", np.linspace(-0.5, 0.5, 900))
    ran = tmp_path / "ran"
    command = f"echo x >> {shlex.quote(str(ran))}; cat {shlex.quote(str(wav))} |"
    folder = make_folder(tmp_path / "d", {"k": command, "l": wav})
    for name in ("make_raw_list", "make_shards"):
        done = tool(name, "--data_dir", folder)
        assert done.returncode == 1
        assert "k is a shell command" in done.stderr
        assert "--allow_pipes" in done.stderr
    assert not ran.exists()
    done = tool("make_raw_list", "--data_dir", folder, "--allow_pipes")
    assert done.returncode == 0, done.stderr
    assert "running 1 shell commands" in done.stderr
    utt = read_raw_list(folder / "raw.list")[0]
    assert (utt.key, utt.length) == ("k", (900, 16000))
    np.testing.assert_array_equal(read_audio(utt.source), read_audio(AudioSource(str(wav))))
    assert list(read_manifest(folder, allow_pipes=True)) == list(read_raw_list(folder / "raw.list"))
    assert ran.read_text() == "x\n"


def test_a_command_that_fails_is_named(tmp_path):
    folder = make_folder(tmp_path / "d", {"k": "echo no such thing >&2; exit 3 |"})
    with pytest.raises(InputError, match=r"exit 3 \|' ended with code 3: no such thing"):
        read_manifest(folder, allow_pipes=True)
    assert not list((folder / "piped").iterdir())


def test_blanks_and_tabs_end_a_key(tmp_path):
    (tmp_path / "wav.scp").write_text("a\t/x y.wav\nb  /z.wav\n")
    assert read_scp(tmp_path / "wav.scp") == {"a": "/x y.wav", "b": "/z.wav"}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("a 0 16000", "cannot have 0 samples at 16000 Hz"),
        ("a -800 16000", "cannot have -800 samples"),
        ("a 800 0", "800 samples at 0 Hz"),
        ("a 800 99999999999", "99999999999 Hz"),
        ("a " + "9" * 30 + " 16000", "cannot have 9"),
    ],
)
def test_lengths_that_cannot_be_are_refused(tmp_path, line, match):
    folder = make_folder(tmp_path / "d", {"a": write_wav(tmp_path / "a.wav", np.zeros(800))})
    (folder / "utt2num_samples").write_text(line + "\n")
    with pytest.raises(InputError, match=rf"wav\.scp: a: .*{match}"):
        read_manifest(folder)


@pytest.fixture
def recipe(tmp_path):
    """A recipe's folder whose lists have paths relative to it, as WeSpeaker's have."""
    folder = make_folder(tmp_path / "recipe" / "data" / "set", {"a": "corpus/a.wav", "b": "corpus/b.wav"})
    for number, key in enumerate("ab"):
        write_wav(tmp_path / "recipe" / "corpus" / f"{key}.wav", np.zeros(800 + number))
    entries = [{"key": key, "spk": key, "wav": f"corpus/{key}.wav"} for key in "ab"]
    (folder / "raw.list").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.mark.parametrize("where", [".", "data/set", "/"])
def test_relative_paths_are_found_from_any_folder(recipe, monkeypatch, where):
    monkeypatch.chdir(recipe.parents[1] / where)
    for table in (read_manifest(recipe), read_raw_list(recipe / "raw.list")):
        assert [utt.length[0] for utt in table] == [800, 801]
        assert [len(read_audio(utt.source)) for utt in table] == [800, 801]


def test_the_current_folder_comes_first_then_that_of_the_list(recipe, monkeypatch):
    def lengths():
        return [utt.length[0] for utt in read_raw_list(recipe / "raw.list")]

    write_wav(recipe / "corpus" / "a.wav", np.zeros(900))
    monkeypatch.chdir("/")
    assert lengths() == [900, 801]
    monkeypatch.chdir(recipe.parents[1])
    assert lengths() == [800, 801]


def test_a_relative_path_that_leads_nowhere_names_list_and_folder(recipe, monkeypatch):
    monkeypatch.chdir("/tmp")
    (recipe.parents[1] / "corpus" / "b.wav").unlink()
    with pytest.raises(InputError, match=r"set/raw\.list:2: corpus/b\.wav does not exist in /"):
        read_raw_list(recipe / "raw.list")
    with pytest.raises(InputError, match=r"set/wav\.scp: b: corpus/b\.wav does not exist in /"):
        read_manifest(recipe)
