import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, voice, write_wav

from wespeaker.config import load_config
from wespeaker.data.audio import audio_length
from wespeaker.data.corpora import Corpora, check_corpora, find_speech, is_published_list
from wespeaker.data.manifest import read_manifest, read_scp
from wespeaker.data.prepare import make_dev_trials, prepare_corpora
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
VOXLISTS = ROOT.parent / "shared" / "voxlists"
PARTS = {"voxceleb1": "voxceleb1", "voxceleb2": "voxceleb2", "musan": "musan", "rirs": "RIRS_NOISES"}


@pytest.fixture
def corpora(corpora_dir):
    return Corpora(**{name: corpora_dir / folder for name, folder in PARTS.items()})


@pytest.fixture
def own_corpora(corpora_dir, tmp_path):
    shutil.copytree(corpora_dir, tmp_path / "c")
    return Corpora(**{name: tmp_path / "c" / folder for name, folder in PARTS.items()})


def prepare(corpora, folder, **options):
    prepare_corpora(corpora, folder, num_jobs=1, rate=RATE, **options)


def test_what_stage_1_leaves(data_dir):
    assert len(read_manifest(data_dir / "vox1")) == 12
    trials = read_trials(data_dir / "vox1" / "trials" / "vox1_O_cleaned.kaldi")
    assert (len(trials), int(trials.is_target.sum())) == (66, 18)
    assert sorted(read_scp(data_dir / "musan" / "wav.scp"))[0] == "music/part/music-0.wav"
    assert "simulated_rirs/smallroom/Room001/Room001-0.wav" in read_scp(data_dir / "rirs" / "wav.scp")


def test_dev_trials_cross_sessions_and_are_seeded(data_dir):
    utterances = read_manifest(data_dir / "vox2_test")
    trials = make_dev_trials(utterances, seed=1)
    for i in np.flatnonzero(trials.is_target):
        enroll, test = trials.name(i).split()
        assert enroll.split("/")[0] == test.split("/")[0]
        assert enroll.split("/")[1] != test.split("/")[1]
    assert trials.utts == make_dev_trials(utterances, seed=1).utts
    assert trials.utts != make_dev_trials(utterances, seed=2).utts


def test_a_second_call_gives_the_same_and_other_corpora_are_refused(corpora, own_corpora, tmp_path):
    prepare(corpora, tmp_path / "d")
    before = {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()}
    prepare(corpora, tmp_path / "d")
    assert before == {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"was prepared from .* give another data folder, or remove"):
        prepare(own_corpora, tmp_path / "d")


def test_a_speaker_in_training_and_test_is_an_error(own_corpora, tmp_path):
    wav = voice(np.random.default_rng(0), 100, 1.5)
    write_wav(own_corpora.voxceleb2 / "dev/wav/id00270/x/00001.wav", wav)
    with pytest.raises(InputError, match="1 speakers are in the training set and in vox1: id00270"):
        prepare(own_corpora, tmp_path / "d")


def test_a_trial_of_an_unknown_utterance_is_an_error(own_corpora, tmp_path):
    with open(own_corpora.voxceleb1 / "meta" / "veri_test2.txt", "a") as file:
        file.write("1 id99999/a/00001.wav id99999/b/00001.wav\n")
    with pytest.raises(InputError, match=r"veri_test2.txt names 2 utterances of which there is no audio .*id99999/a"):
        prepare(own_corpora, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_empty_and_missing_folders_are_named(corpora, tmp_path):
    with pytest.raises(InputError, match=f"no audio of VoxCeleb's layout under {tmp_path}/no; stage 0"):
        prepare(Corpora(corpora.voxceleb1, tmp_path / "no", None, None), tmp_path / "d")
    with pytest.raises(InputError, match="give --voxceleb1 and --voxceleb2"):
        prepare(Corpora(corpora.voxceleb1, None, None, None), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_bad_audio_is_listed_or_left_out(own_corpora, tmp_path):
    bad = own_corpora.voxceleb2 / "dev/wav/id00012/aaa/00009.wav"
    bad.write_bytes(b"no audio")
    with pytest.raises(
        InputError, match=r"1 of 25 audio files .*00009.wav cannot be read as audio .* --max_bad_utts 0.04"
    ):
        prepare(own_corpora, tmp_path / "d")
    assert not (tmp_path / "d" / "vox2_dev" / "wav.scp").exists()
    prepare(own_corpora, tmp_path / "d", max_bad_utts=0.05)
    assert len(read_manifest(tmp_path / "d" / "vox2_dev")) == 24
    assert "00009.wav" in (tmp_path / "d" / "vox2_dev" / "bad.txt").read_text()


def test_audio_that_a_trial_names_cannot_be_left_out(own_corpora, tmp_path):
    (own_corpora.voxceleb1 / "test/wav/id00270/aaa/00001.wav").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"1 audio files that trials name cannot be used: .*00001\.wav .*; mend them"):
        prepare(own_corpora, tmp_path / "d", max_bad_utts=0.5)


def test_a_second_call_reads_only_what_is_new(own_corpora, tmp_path, monkeypatch):
    prepare(own_corpora, tmp_path / "d")
    read = []

    def audio_length_counted(source):
        read.append(source.path)
        return audio_length(source)

    monkeypatch.setattr("wespeaker.data.prepare.audio_length", audio_length_counted)
    wav = write_wav(own_corpora.voxceleb2 / "dev/wav/id00012/aaa/00007.wav", np.ones(900) / 9)
    changed = write_wav(own_corpora.voxceleb2 / "dev/wav/id00012/aaa/00001.wav", np.ones(700) / 9)
    prepare(own_corpora, tmp_path / "d")
    assert sorted(path for path in read if "voxceleb" in path) == [str(changed), str(wav)]
    table = read_manifest(tmp_path / "d" / "vox2_dev")
    assert table.find("id00012/aaa/00007.wav").length == (900, RATE)
    assert table.find("id00012/aaa/00001.wav").length == (700, RATE)


def test_processes_and_chunks_find_the_same(own_corpora, tmp_path, monkeypatch):
    prepare(own_corpora, tmp_path / "one")
    monkeypatch.setattr("wespeaker.data.prepare._CHUNK", 3)
    prepare_corpora(own_corpora, tmp_path / "two", num_jobs=2, rate=RATE)
    for name in ("wav.scp", "utt2spk", "utt2dur", "utt2num_samples"):
        assert (tmp_path / "one/vox2_dev" / name).read_text() == (tmp_path / "two/vox2_dev" / name).read_text()


def test_a_room_response_of_another_rate_is_an_error(own_corpora, tmp_path):
    write_wav(own_corpora.rirs / "simulated_rirs/smallroom/Room009/r.wav", np.eye(1, 100)[0], rate=8000)
    with pytest.raises(InputError, match=r"r\.wav has 8000 Hz; noises and room responses must have 16000 Hz"):
        prepare(own_corpora, tmp_path / "d")


@pytest.fixture
def config():
    return lambda *overrides: load_config(ROOT / "conf" / "mini_qmargin.yaml", overrides)


def test_complete_corpora_pass_the_check(corpora, config):
    check_corpora(corpora, config())


def test_missing_parts_say_what_they_are_for_and_where_they_come_from(corpora, config):
    with pytest.raises(InputError) as caught:
        check_corpora(Corpora(None, corpora.voxceleb2, Path("nowhere"), None), config())
    message = str(caught.value)
    assert "--voxceleb1 DIR is not given; it is for the test speech; its owners give access" in message
    assert "--musan nowhere is not a folder; it is for the noise augmentation" in message
    assert "--rirs DIR is not given; it is for the reverberation augmentation" in message
    assert "voxceleb2" not in message


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("dataset_args.aug_prob=0", set()),
        ("dataset_args.reverb_share=0", {"musan"}),
        ("dataset_args.reverb_share=1", {"rirs"}),
    ],
)
def test_only_the_augmentation_that_is_on_needs_its_corpus(corpora, config, override, needed):
    bare = Corpora(corpora.voxceleb1, corpora.voxceleb2, None, None)
    if not needed:
        check_corpora(bare, config(override))
        return
    with pytest.raises(InputError) as caught:
        check_corpora(bare, config(override))
    assert {name for name in ("musan", "rirs") if f"--{name}" in str(caught.value)} == needed


def test_folders_of_another_layout_are_named(corpora, config, tmp_path):
    with pytest.raises(InputError, match=r"has no audio laid out as idNNNNN"):
        check_corpora(Corpora(corpora.voxceleb1, tmp_path, corpora.musan, corpora.rirs), config())
    with pytest.raises(InputError, match="has no folder noise, speech, music"):
        check_corpora(Corpora(corpora.voxceleb1, corpora.voxceleb2, tmp_path, corpora.rirs), config())
    (tmp_path / "id10001" / "a").mkdir(parents=True)
    shutil.copy(next(path for _, path in find_speech(corpora.voxceleb1)), tmp_path / "id10001" / "a" / "00001.wav")
    with pytest.raises(InputError, match=r"no trial list .*veri_test2\.txt.* lies under"):
        check_corpora(Corpora(tmp_path, corpora.voxceleb2, corpora.musan, corpora.rirs), config())


@pytest.mark.skipif(not VOXLISTS.is_dir(), reason="the published lists are not beside this checkout")
def test_published_lists_are_recognised(tmp_path):
    assert is_published_list("vox1_O", VOXLISTS / "veri_test.txt")
    assert is_published_list("vox1_O_cleaned", VOXLISTS / "veri_test2.txt")
    changed = tmp_path / "veri_test2.txt"
    changed.write_bytes((VOXLISTS / "veri_test2.txt").read_bytes()[:-5])
    assert not is_published_list("vox1_O_cleaned", changed)
