"""The files that the recipe leaves, read the way WeSpeaker's tools read them and with nothing of ours.

The readers are the libraries that WeSpeaker uses (kaldiio, tarfile, json, numpy, torch, scipy's wavfile) or a plain
split, and the columns and keys those that its tools ask for. Each test is about one kind of file.
"""

import io
import json
import pickle
import shutil
import tarfile

import kaldiio
import lmdb
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import RATE, ROOT, SMALL, run_command
from scipy.io import wavfile
from sklearn.metrics.pairwise import cosine_similarity

from wespeaker.config import load_config

TRIALS = "vox1_O_cleaned.kaldi"
KIND = "vox2_dev_asnorm3"


def to_lmdb(bank):
    """Turn a bank into a database as WeSpeaker's make_lmdb.py does, and take its wav.scp away."""
    entries = [line.split() for line in (bank / "wav.scp").read_text().splitlines()]
    with lmdb.open(str(bank / "lmdb"), map_size=1 << 30) as database, database.begin(write=True) as transaction:
        for key, path in entries:
            with open(path, "rb") as file:
                transaction.put(key.encode(), file.read())
        transaction.put(b"__keys__", pickle.dumps([key for key, _ in entries]))
    (bank / "wav.scp").unlink()


@pytest.fixture(scope="module")
def data(data_dir, tmp_path_factory):
    """A data folder with noise and rooms in WeSpeaker's databases."""
    data = tmp_path_factory.mktemp("formats") / "data"
    shutil.copytree(data_dir, data)
    for name in ("musan", "rirs"):
        to_lmdb(data / name)
    return data


@pytest.fixture(scope="module")
def exp(data):
    """A run folder after all stages."""
    exp = data.parent / "exp"
    done = run_command(
        "bash", "run.sh", "--corpus", "voxceleb", "--data", data, "--exp_dir", exp, "--stage", "2", "--top_n", "3",
        "--config", "conf/mini_qmargin.yaml", "--set", " ".join(SMALL), "--data_type", "raw", "--far", "1e-1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return exp


def columns(path):
    """Read lines as WeSpeaker's read_table does."""
    return [line.strip().split() for line in path.read_text().splitlines()]


def vectors(scp):
    return dict(kaldiio.load_scp(str(scp)).items())


def test_manifests(data):
    for name in ("vox2_dev", "vox1"):
        wav, utt2spk, utt2dur = (dict(columns(data / name / file)) for file in ("wav.scp", "utt2spk", "utt2dur"))
        assert wav.keys() == utt2spk.keys() == utt2dur.keys()
        for key, path in wav.items():
            assert key.endswith(".wav")
            assert key.split("/")[0] == utt2spk[key]
            assert path.startswith("/")
            assert float(utt2dur[key]) == pytest.approx(soundfile.info(path).duration, abs=1e-6)
        spk2utt = {spk: utts for spk, *utts in columns(data / name / "spk2utt")}
        assert {utt: spk for spk, utts in spk2utt.items() for utt in utts} == utt2spk


def test_raw_list(data, exp):
    entries = [json.loads(line) for line in (data / "vox2_dev" / "raw.list").read_text().splitlines()]
    wav, utt2spk = (dict(columns(data / "vox2_dev" / file)) for file in ("wav.scp", "utt2spk"))
    assert {entry["key"]: (entry["wav"], entry["spk"]) for entry in entries} == {
        key: (wav[key], utt2spk[key]) for key in wav
    }


def test_shards(data):
    """Read as a stream, a name up to its last dot being the key, and the members of a key neighbours."""
    found = {}
    for (shard,) in columns(data / "vox2_dev" / "shard.list"):
        with open(shard, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
            key, parts = None, {}
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if stem != key:
                    key, parts = stem, {}
                parts[suffix] = tar.extractfile(member).read()
                if parts.keys() == {"spk", "wav"}:
                    assert key not in found
                    rate, samples = wavfile.read(io.BytesIO(parts["wav"]))
                    found[key] = parts["spk"].decode().strip(), rate, samples
    utt2spk, wav = (dict(columns(data / "vox2_dev" / file)) for file in ("utt2spk", "wav.scp"))
    assert {key: spk for key, (spk, _, _) in found.items()} == utt2spk
    for key, (_, rate, samples) in found.items():
        assert rate == RATE
        np.testing.assert_array_equal(samples, wavfile.read(wav[key])[1])


def test_trials(data):
    keys = dict(columns(data / "vox1" / "wav.scp"))
    trials = columns(data / "vox1" / "trials" / TRIALS)
    assert {label for _, _, label in trials} == {"target", "nontarget"}
    for enroll, test, label in trials:
        assert {enroll, test} <= keys.keys()
        assert (enroll.split("/")[0] == test.split("/")[0]) == (label == "target")


def test_embeddings(data, exp):
    for name in ("vox2_dev", "vox1"):
        folder = exp / "embeddings" / name
        found = vectors(folder / "xvector.scp")
        assert found.keys() == dict(columns(data / name / "wav.scp")).keys()
        for key, vector in found.items():
            assert (vector.shape, vector.dtype) == ((16,), np.float32), key
        with open(folder / "xvector.ark", "rb") as ark:
            assert dict(kaldiio.load_ark(ark)).keys() == found.keys()
        assert all(path.startswith(f"{folder}/xvector.ark:") for _, path in columns(folder / "xvector.scp"))


def test_mean_vector(exp):
    folder = exp / "embeddings" / "vox2_dev"
    mean = np.load(folder / "mean_vec.npy", allow_pickle=False)
    assert mean.shape == (16,)
    np.testing.assert_allclose(mean, np.mean(list(vectors(folder / "xvector.scp").values()), axis=0), atol=1e-5)


def test_means_of_speakers(data, exp):
    folder = exp / "embeddings" / "vox2_dev"
    utts, speakers = vectors(folder / "xvector.scp"), vectors(folder / "spk_xvector.scp")
    spk2utt = {spk: utts for spk, *utts in columns(data / "vox2_dev" / "spk2utt")}
    assert speakers.keys() == spk2utt.keys()
    for spk, of_spk in spk2utt.items():
        np.testing.assert_allclose(speakers[spk], np.mean([utts[utt] for utt in of_spk], axis=0), atol=1e-5)


def centred(exp, name, scp="xvector.scp"):
    mean = np.load(exp / "embeddings" / "vox2_dev" / "mean_vec.npy")
    return {key: vector - mean for key, vector in vectors(exp / "embeddings" / name / scp).items()}


def test_scores(data, exp):
    """Four columns, the label last."""
    rows = columns(exp / "scores" / f"{TRIALS}.score")
    assert [[a, b, label] for a, b, _, label in rows] == columns(data / "vox1" / "trials" / TRIALS)
    utts = centred(exp, "vox1")
    for a, b, score, _ in rows:
        assert float(score) == pytest.approx(cosine_similarity(utts[a][None], utts[b][None])[0, 0], abs=1e-5)


def test_normalised_scores(exp):
    """Eight columns: norms of both sides, then their cohort means, of the three nearest speakers."""
    cohort = np.stack(list(centred(exp, "vox2_dev", "spk_xvector.scp").values()))
    utts = centred(exp, "vox1")
    top = {utt: np.sort(cosine_similarity(vector[None], cohort)[0])[::-1][:3] for utt, vector in utts.items()}
    cosines = columns(exp / "scores" / f"{TRIALS}.score")
    rows = columns(exp / "scores" / f"{KIND}_{TRIALS}.score")
    assert [(a, b, label) for a, b, _, label, *_ in rows] == [(a, b, label) for a, b, _, label in cosines]
    for (a, b, score, _, *sides), (_, _, cosine, _) in zip(rows, cosines, strict=True):
        expected = [np.linalg.norm(utts[a]), np.linalg.norm(utts[b]), top[a].mean(), top[b].mean()]
        np.testing.assert_allclose([float(side) for side in sides], expected, rtol=1e-3, atol=1e-5)
        halves = [(float(cosine) - top[utt].mean()) / top[utt].std() for utt in (a, b)]
        assert float(score) == pytest.approx(np.mean(halves), rel=1e-2, abs=1e-2)


def test_what_calibration_factors_are_gathered_from(data, exp):
    """WeSpeaker's tool takes durations and files of eight columns, and divides larger by smaller."""
    scores = exp / "scores"
    durations = {**dict(columns(data / "vox1" / "utt2dur")), **dict(columns(data / "vox2_dev" / "utt2dur"))}
    for path in (scores / f"{KIND}_{TRIALS}.score", scores / "calibration" / f"{KIND}_vox2_cali.kaldi.score"):
        rows = columns(path)
        assert {label for _, _, _, label, *_ in rows} == {"target", "nontarget"}
        for a, b, score, _, norm_a, norm_b, mean_a, mean_b in rows:
            assert min(float(durations[a]), float(durations[b])) > 0
            assert min(float(norm_a), float(norm_b)) > 0
            assert np.isfinite([float(score), float(mean_a), float(mean_b)]).all()
    trials = [(a, b, label) for a, b, label in columns(scores / "calibration" / "vox2_cali.kaldi")]
    assert [(a, b, label) for a, b, _, label, *_ in rows] == trials


def test_calibrated_scores(exp):
    rows = columns(exp / "scores" / f"cali_{KIND}_{TRIALS}.score")
    assert [(a, b, label) for a, b, _, label in rows] == [
        (a, b, label) for a, b, _, label in columns(exp / "scores" / f"{TRIALS}.score")
    ]
    assert np.isfinite([float(score) for _, _, score, _ in rows]).all()


def test_weights(exp):
    """A flat dictionary of tensors: the backbone's keys bare, as the model takes them, the head's with its prefix."""
    for name in ("avg_model.pt", "model_2.pt"):
        weights = torch.load(exp / "models" / name, map_location="cpu", weights_only=True)
        assert all(isinstance(weight, torch.Tensor) for weight in weights.values())
        assert {key.split(".")[0] for key in weights} == {
            *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "seg_1", "projection")
        }
        assert weights["seg_1.weight"].shape == (16, 2 * 2 * 8 * 10)  # mean and deviation of 10 rows of 8 x 2 channels
        assert weights["projection.weight"].shape == (6, 16)


def test_config(exp):
    """What extract.py, export_onnx.py and the command line read of config.yaml, under the same names and units."""
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["model"] == "ResNet10"
    assert config["model_args"]["feat_dim"] == config["dataset_args"]["fbank_args"]["num_mel_bins"] == 80
    args = config["dataset_args"]
    assert args.get("frontend", "fbank") == "fbank"
    assert args.get("cmvn", True)
    assert args["resample_rate"] == RATE
    assert args["num_frms"] == 60
    assert args["fbank_args"] == {"num_mel_bins": 80, "frame_length": 25.0, "frame_shift": 10.0, "dither": 1.0}
    assert set(args["spec_aug_args"]) == {"num_t_mask", "num_f_mask", "max_t", "max_f", "prob"}
    assert set(args["filter_args"]) <= {"min_num_frames", "max_num_frames"}


RESNET = {"feat_dim", "embed_dim", "pooling_func", "two_emb_layer"}
CAMPPLUS = {"feat_dim", "embed_dim", "pooling_func", "growth_rate", "bn_size", "init_channels", "config_str"}


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        ("resnet34_qmargin", RESNET),
        ("resnet34_arcface", RESNET),
        ("ecapa_tdnn_qmargin", {"feat_dim", "embed_dim", "pooling_func", "emb_bn"}),
        ("campplus_qmargin", CAMPPLUS),
        ("mini_xvec_qmargin", {"feat_dim", "hid_dim", "stats_dim", "embed_dim", "pooling_func"}),
    ],
)
def test_models_of_wespeaker_take_all_model_args(config, taken):
    """Its tools call ``model(**model_args)``, and a key more is a TypeError."""
    assert set(yaml.safe_load(load_config(ROOT / "conf" / f"{config}.yaml").record())["model_args"]) <= taken


def test_noise_and_rooms_came_from_databases(data, exp):
    command = json.loads((exp / "env.json").read_text())["command"]
    for option, name in (("--noise_data", "musan"), ("--reverb_data", "rirs")):
        assert command[command.index(option) + 1] == f"{data}/{name}/lmdb"
