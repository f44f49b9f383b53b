import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, ROOT, voice, write_wav

from wespeaker.config import load_config
from wespeaker.data.report import report_table
from wespeaker.data.validate import validate_data
from wespeaker.errors import InputError


class Folder:
    """A data folder of three speakers with two sound utterances each, to which a test adds what is wrong."""

    def __init__(self, path):
        self.path, self.rng = path, np.random.default_rng(0)
        self.wav, self.spk = {}, {}
        for spk in ("ann", "bob", "cat"):
            for number in (1, 2):
                self.add(f"{spk}/{number}.wav", spk, self.voice(1.5))

    def voice(self, seconds):
        return voice(self.rng, float(self.rng.uniform(90, 200)), seconds)

    def add(self, key, spk, samples, rate=RATE):
        self.list(key, spk, write_wav(self.path / "audio" / key, samples, rate))

    def list(self, key, spk, path):
        self.wav[key], self.spk[key] = str(path), spk

    def validate(self, *overrides, config=False):
        for name, lines in (("wav.scp", self.wav), ("utt2spk", self.spk)):
            (self.path / name).write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        args = load_config(ROOT / "conf" / "mini_qmargin.yaml", overrides) if config or overrides else None
        return validate_data(self.path, num_threads=2, config=args)

    def findings(self, *overrides, config=False):
        return {f.name: (f.level, list(f.items)) for f in self.validate(*overrides, config=config).findings}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_sound_data_has_figures_and_no_finding(folder):
    report = folder.validate(config=True)
    assert report.findings == []
    assert (report.num_utts, report.num_spks, report.hours) == (6, 3, pytest.approx(9 / 3600))
    assert report.duration_sec == {name: pytest.approx(1.5) for name in ("min", "p01", "median", "p99", "max")}
    assert (report.sample_rates, report.channels) == ({RATE: 6}, {1: 6})
    assert (report.training.num_utts, report.training.num_spks) == (6, 3)
    assert report_table(report).endswith("nothing to mend")


def test_quantiles_of_durations_and_of_utterances_per_speaker(folder):
    for seconds in (0.5, 4.0):
        folder.add(f"ann/{seconds}.wav", "ann", folder.voice(seconds))
    report = folder.validate()
    assert (report.duration_sec["min"], report.duration_sec["median"], report.duration_sec["max"]) == (0.5, 1.5, 4.0)
    assert (report.utts_per_spk["min"], report.utts_per_spk["median"], report.utts_per_spk["max"]) == (2, 2, 4)


def test_what_is_wrong_with_one_utterance(folder):
    time = np.arange(RATE) / RATE
    folder.add("ann/zero.wav", "ann", np.zeros(RATE))
    folder.add("ann/quiet.wav", "ann", 5e-4 * np.sin(700 * time))
    folder.add("ann/loud.wav", "ann", np.clip(3 * np.sin(700 * time), -1, 1))
    folder.add("ann/offset.wav", "ann", folder.voice(1.0) - 0.1)
    folder.add("ann/stereo.wav", "ann", np.stack([folder.voice(1.0)] * 2, axis=1))
    assert folder.findings() == {
        "all_zero": ("warning", ["ann/zero.wav"]),
        "silent": ("warning", ["ann/quiet.wav: -69 dB"]),
        "clipped": ("warning", ["ann/loud.wav"]),
        "dc_offset": ("warning", ["ann/offset.wav: -0.100"]),
        "several_channels": ("warning", ["ann/stereo.wav: 2 channels"]),
    }


def test_what_must_be_mended(folder):
    bad = folder.voice(1.0)
    bad[3] = np.nan
    soundfile.write(folder.path / "nan.wav", bad, RATE, subtype="FLOAT")
    folder.list("ann/nan.wav", "ann", folder.path / "nan.wav")
    folder.list("ann/gone.wav", "ann", folder.path / "gone.wav")
    (folder.path / "text.wav").write_text("no audio")
    folder.list("bob/text.wav", "bob", folder.path / "text.wav")
    folder.spk["bob/lost.wav"] = "bob"
    found = folder.findings()
    assert {name: level for name, (level, _) in found.items()} == dict.fromkeys(
        ("not_finite", "unreadable", "unlisted"), "error"
    )
    assert found["not_finite"][1] == ["ann/nan.wav"]
    assert found["unlisted"][1] == ["bob/lost.wav"]
    gone, text = found["unreadable"][1]
    assert gone == f"ann/gone.wav: {folder.path}/gone.wav does not exist"
    assert text.startswith(f"bob/text.wav: {folder.path}/text.wav cannot be read as audio")


def test_the_same_audio_under_two_keys_and_under_two_speakers(folder):
    samples, _ = soundfile.read(folder.wav["ann/1.wav"])
    soundfile.write(folder.path / "copy.flac", samples, RATE)
    folder.list("ann/copy.flac", "ann", folder.path / "copy.flac")
    assert folder.findings() == {"duplicates": ("warning", ["ann/1.wav = ann/copy.flac"])}
    folder.list("bob/copy.flac", "bob", folder.path / "copy.flac")
    wanted = "ann/1.wav (ann) = ann/copy.flac (ann) = bob/copy.flac (bob)"
    assert folder.findings() == {"two_speakers": ("error", [wanted])}


def test_silence_of_zeros_is_not_a_duplicate(folder):
    for spk in ("ann", "bob"):
        folder.add(f"{spk}/zero.wav", spk, np.zeros(RATE))
    assert set(folder.findings()) == {"all_zero"}


def test_what_training_with_a_config_leaves_out_and_resamples(folder):
    folder.add("dan/short.wav", "dan", folder.voice(0.9))
    folder.add("ann/phone.wav", "ann", folder.voice(1.0), rate=8000)
    folder.add("ann/studio.wav", "ann", folder.voice(6.0), rate=48000)
    assert folder.findings(config=True) == {
        "one_utterance": ("warning", ["dan"]),
        "too_short": ("warning", ["dan/short.wav: 0.90 s"]),  # min_num_frames 100 is 1.015 s
        "lost_speakers": ("warning", ["dan"]),
        "higher_rate": ("warning", ["ann/studio.wav: 48000 Hz"]),
        "lower_rate": ("warning", ["ann/phone.wav: 8000 Hz"]),
    }
    report = folder.validate(config=True)
    assert (report.training.num_utts, report.training.num_spks) == (8, 3)
    assert report.training.num_classes == 3
    assert folder.validate("dataset_args.speed_perturb=true").training.num_classes == 9
    one_class_each = ("dataset_args.speed_perturb=true", "dataset_args.speed_as_new_speaker=false")
    assert folder.validate(*one_class_each).training.num_classes == 3
    assert report.training.shortest_sec == pytest.approx(1.015)
    assert "too_short" not in folder.findings("dataset_args.filter=false")
    assert folder.findings("dataset_args.filter_args.min_num_frames=500")["too_few_speakers"] == ("error", ["(none)"])


def test_the_table_shows_errors_first_and_the_first_few(folder):
    for number in range(5):
        folder.list(f"bob/gone{number}.wav", "bob", Path("gone.wav"))
    folder.add("ann/zero.wav", "ann", np.zeros(RATE))
    lines = report_table(folder.validate()).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("error"))
    assert lines[at].split()[:4] == ["error", "unreadable", "5", "41.67%"]
    assert lines[at + 1 : at + 5] == [
        *(f"  bob/gone{n}.wav: gone.wav does not exist in {Path.cwd()}" for n in range(3)),
        "  and 2 more",
    ]
    assert lines[at + 5].startswith("warning  all_zero")


def test_a_manifest_that_cannot_be_read_is_an_error(folder, tmp_path):
    with pytest.raises(InputError, match=r"wav\.scp .* does not exist"):
        validate_data(tmp_path, num_threads=1)
    folder.spk = {"other": "ann"}
    with pytest.raises(InputError, match="have no key in common"):
        folder.validate()


def test_the_tool_writes_the_whole_lists_and_fails_where_something_must_be_mended(folder, tool):
    folder.add("ann/zero.wav", "ann", np.zeros(2 * RATE))
    for number in range(5):
        folder.list(f"bob/gone{number}.wav", "bob", Path("gone.wav"))
    folder.validate()
    done = tool("validate_data", "--data_dir", folder.path)
    assert done.returncode == 1
    assert "error    unreadable" in done.stdout
    assert f"{folder.path} must be mended before training (5 unreadable); {folder.path}/report.json" in done.stderr
    findings = json.loads((folder.path / "report.json").read_text())["findings"]
    assert len(findings["unreadable"]["items"]) == findings["unreadable"]["count"] == 5
    assert (findings["all_zero"]["level"], findings["all_zero"]["items"]) == ("warning", ["ann/zero.wav"])
