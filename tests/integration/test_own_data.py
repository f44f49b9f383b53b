"""A user's own folder tree: prepared by either rule, validated, packed and read as training data."""

import json

import pytest
from conftest import RATE, ROOT, run_command

import wespeaker
from wespeaker.config import load_config
from wespeaker.data.custom import prepare_folder, speaker_from_regex
from wespeaker.data.dataset import read_training_list
from wespeaker.data.manifest import read_pairs


@pytest.fixture(scope="module")
def own(tool, corpora_dir, tmp_path_factory):
    """The training and dev speech of the test corpora as a folder tree of SPEAKER/SESSION/FILE, prepared."""
    data = tmp_path_factory.mktemp("own") / "data"
    done = tool(
        "prepare_data", "--wav_dir", corpora_dir / "voxceleb2", "--spk_from", "parent", "--spk_level", "2",
        "--num_test_speakers", "3", "--musan", corpora_dir / "musan", "--output_dir", data,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"36 utterances of 9 speakers: {data}" in done.stdout
    return data


def test_folders_and_regular_expressions_find_the_same_speakers(own, corpora_dir, tmp_path):
    rule = speaker_from_regex(r"/(id\d+)/")
    prepare_folder(corpora_dir / "voxceleb2", tmp_path, speaker_of=rule, num_jobs=1, rate=RATE, num_test_speakers=3)
    for name in ("wav.scp", "utt2spk", "spk2utt", "utt2dur", "train/utt2spk", "test/utt2spk", "test/trials/test.kaldi"):
        assert (tmp_path / name).read_text() == (own / name).read_text()
    assert all(key.split("/")[-3] == spk for key, spk in read_pairs(own / "utt2spk", "speakers").items())


def test_it_is_validated_packed_and_read_as_training_data(own, tool):
    done = tool("validate_data", "--data_dir", own, "--config", "conf/mini_qmargin.yaml")
    assert done.returncode == 0, done.stderr
    assert "for training  36 utterances of 9 speakers" in done.stdout
    report = json.loads((own / "report.json").read_text())
    assert report["wespeaker_q"] == wespeaker.__version__
    assert (report["num_utts"], report["num_spks"], report["findings"]) == (36, 9, {})

    done = tool("make_shards", "--data_dir", own / "train")
    assert done.returncode == 0, done.stderr
    args = load_config(ROOT / "conf" / "mini_qmargin.yaml", []).dataset_args
    read = read_training_list(own / "train" / "shard.list", "shard", args)
    assert {utt.key: utt.spk for utt in read} == read_pairs(own / "train" / "utt2spk", "speakers")
    assert (own / "musan" / "wav.scp").is_file()


def test_run_sh_says_what_own_data_needs(tmp_path):
    done = run_command("bash", "run.sh", "--corpus", "own", "--data", tmp_path)
    assert done.returncode == 1
    assert f"there is no {tmp_path}/train; make it with tools/prepare_data.py --wav_dir DIR" in done.stderr
