"""Every reader of outside files against damaged, lying and random ones: a sentence or a value, soon, in little memory.

A further kind of file is one more `Family` in FAMILIES: a valid file, the call that reads it, and where the format has
checksums a function that makes them right again.
"""

from __future__ import annotations

import io
import json
import logging
import resource
import shutil
import tarfile
import time
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import RATE, ROOT, encode_m4a
from fuzzing import Family, attack
from PIL import Image
from tiny_models import DIM, decision, tiny_card, write_onnx
from wespeakers import saved, write_folder

from wespeaker.config import load_config
from wespeaker.data.audio import AudioSource, read_audio, read_header, read_whole
from wespeaker.data.bank import read_bank
from wespeaker.data.faces.packs import FacePack, write_face_pack
from wespeaker.data.faces.record_writer import folder_images, write_recordio
from wespeaker.data.faces.recordio import RecordFile
from wespeaker.data.faces.templates import read_templates
from wespeaker.data.manifest import read_manifest, read_raw_list, write_manifest, write_raw_list
from wespeaker.data.measure import measure
from wespeaker.data.shards import ShardIndex, load_index, read_shard_list, save_index, scan_shard
from wespeaker.data.trials import (
    Trials,
    read_any_scores,
    read_normalised_scores,
    read_scores,
    read_trials,
    read_unlabelled_trials,
    write_scores,
)
from wespeaker.data.utterances import merge_tables
from wespeaker.deploy.card import Card, CosineCalibration, Decision, FarUpper, FbankSettings, MeasuredPoint
from wespeaker.deploy.embedder import load_embedder
from wespeaker.deploy.measured import read_thresholds
from wespeaker.deploy.store import new_person, open_store
from wespeaker.eval.calibrated_scores import read_durations
from wespeaker.eval.calibration import Calibration, load_calibration, save_calibration
from wespeaker.eval.embeddings import load_embeddings, load_mean_vec, write_embeddings
from wespeaker.eval.faces.embeddings import FaceEmbeddings, load_face_embeddings, write_face_embeddings
from wespeaker.interchange.importing import read_model
from wespeaker.models import build_model
from wespeaker.report.runs import read_runs
from wespeaker.train import checkpoint

SAMPLES = (np.random.default_rng(0).standard_normal(1200) * 3000).astype(np.int16)
TRIALS = Trials(["a/1", "a/2", "b/1"], np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([True, False, False]))


def audio(container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, RATE, format=container, subtype=subtype)
    return file.getvalue()


def read_audio_file(path: Path) -> None:
    """Read a file in all the ways there are, each of which may refuse it."""
    source = AudioSource(str(path))
    header = read_header(source)
    read_audio(source, 10, 100)
    assert len(read_whole(source)[0]) > 0
    assert measure(str(path)).num_samples > 0
    assert header.rate > 0


def audio_family(name: str, data: bytes) -> Family:
    return Family(
        name, "a", lambda folder: (folder / "a").write_bytes(data), lambda folder: read_audio_file(folder / "a")
    )


def build_shard(folder: Path) -> None:
    members = [("id1/v/1.spk", b"id1"), ("id1/v/1.wav", audio("WAV", "PCM_16"))]
    members += [("id2/v/2.spk", b"id2"), ("id2/v/2.flac", audio("FLAC", "PCM_16")), ("id2/" + "ä" * 90 + ".txt", b"t")]
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # an extended header
            tar.addfile(info, io.BytesIO(data))


def build_index(folder: Path) -> None:
    build_shard(folder)
    save_index(folder / "a.tar", scan_shard(folder / "a.tar"))


def use_index(index: ShardIndex) -> None:
    for utt in merge_tables([index.table]):
        assert utt.seconds > 0
        try:
            read_audio(utt.source, 5, 50)
        except OSError:
            raise AssertionError("an index led outside of its tar file") from None


def repair_tar(data: bytes) -> bytes:
    """Make the checksums of all blocks right that may be headers."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    for i, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[i] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def repair_index(data: bytes) -> bytes:
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
        head["crc32"] = zlib.crc32(body)
        head["key_bytes"] = len(body) - 48 * head["rows"]
        return json.dumps(head).encode() + b"\n" + body
    except (ValueError, TypeError, KeyError, RecursionError):
        return data


def build_set(folder: Path) -> None:
    """Write a data set of two utterances."""
    shutil.rmtree(folder / "set", ignore_errors=True)
    build_shard(folder)
    for name in ("a", "b"):
        (folder / f"{name}.wav").write_bytes(audio("WAV", "PCM_16"))
    (folder / "set").mkdir()
    (folder / "set" / "wav.scp").write_text("".join(f"{name}/1 {folder}/{name}.wav\n" for name in "ab"))
    (folder / "set" / "utt2spk").write_text("a/1 a\nb/1 b\n")
    write_manifest(folder / "set", read_manifest(folder / "set"))
    write_raw_list(folder / "set" / "raw.list", read_manifest(folder / "set"))
    cut = {"key": "c/1", "spk": "c", "wav": f"{folder}/a.wav", "vad": [["0.01", "0.02"], [0.03, 9]]}
    (folder / "set" / "vad.list").write_text(json.dumps(cut) + "\n" + (folder / "set" / "raw.list").read_text())
    (folder / "set" / "shard.list").write_text(f"{folder}/a.tar\n")


def read_set(folder: Path) -> None:
    read_manifest(folder / "set").seconds.sum()


def build_bank(folder: Path) -> None:
    """Write an LMDB bank of values in leaves and on pages of their own."""
    shutil.rmtree(folder / "bank", ignore_errors=True)
    with lmdb.open(str(folder / "bank"), map_size=1 << 20) as database, database.begin(write=True) as transaction:
        for number in range(30):
            transaction.put(f"noise/x/{number:03d}.wav".encode(), audio("WAV", "PCM_16")[: 60 if number else None])
        transaction.put(b"__keys__", b"any pickle")


def read_lmdb_bank(folder: Path) -> None:
    for file in read_bank(folder / "bank"):
        read_audio(file.source, 0, 5)


def build_vad(folder: Path) -> None:
    build_set(folder)
    (folder / "set" / "vad").write_text("x a/1 0.01 0.02\nx a/1 0.03 9\nx b/1 0 0.07\n")


def read_cut(path: Path) -> None:
    for utt in read_raw_list(path) if path.is_file() else read_manifest(path):
        assert len(read_audio(utt.source)) <= len(SAMPLES) * max(1, len(utt.source.segments))


def set_family(file: str) -> Family:
    return Family(file, f"set/{file}", build_set, read_set)


def build_embeddings(folder: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    write_embeddings(folder, zip(TRIALS.utts, vectors, strict=True), expected=3)


def read_embeddings(folder: Path) -> None:
    utts, embeddings = load_embeddings(folder / "xvector.scp")
    assert len(utts) == len(embeddings)


def build_checkpoint(folder: Path) -> None:
    net = torch.nn.Linear(4, 3)
    checkpoint.save({"model": net.state_dict(), "epoch": 3, "rng": torch.get_rng_state()[:64]}, folder / "a.pt")


def build_run(folder: Path) -> None:
    run = folder / "run"
    (run / "scores").mkdir(parents=True, exist_ok=True)
    tars = {"0.01": {"tar": 1.0, "threshold": 0.5}}
    rates = {"num_target": 1, "num_nontarget": 2, "eer": 0.1, "min_dcf": {"0.01": 0.5}, "tar_at_far": tars}
    (run / "scores" / "results.json").write_text(json.dumps({"score": "cosine", "trials": {"t": rates}}))
    write_scores(run / "scores" / "t.score", TRIALS, [0.5, 0.1, 0.2])
    shutil.copy(ROOT / "conf" / "mini_qmargin.yaml", run / "config.yaml")
    (run / "env.json").write_text(json.dumps({"packages": {"torch": "2.11"}, "command": ["train.py"]}))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "epoch": 1, "loss": 0.5}) + "\n" for i in (1, 2)))


def run_family(file: str) -> Family:
    return Family(f"run {file}", f"run/{file}", build_run, lambda folder: read_runs([folder / "run"]))


def text_family(name: str, text: str, read: object) -> Family:
    assert callable(read)
    return Family(name, "list", lambda folder: (folder / "list").write_text(text), lambda folder: read(folder / "list"))


def build_faces(folder: Path) -> None:
    """Write two persons' pictures as a folder, as RecordIO and as a pack, and templates of them."""
    trials = Trials(["a/0.png", "a/1.png", "b/0.png"], np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    for name in trials.utts:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(folder / name)
    write_recordio(folder, folder_images(folder))
    write_face_pack(folder / "faces.bin", folder, trials)
    (folder / "tid_mid").write_text("a/0.png 7 1\na/1.png 7 2\nb/0.png 9 1\n")
    (folder / "pairs").write_text("7 9 0\n9 7 0\n")
    (folder / "points").write_text("".join(f"{name} {' '.join(['1.5'] * 10)} 0.9\n" for name in trials.utts))
    write_face_embeddings(folder / "faces.npz", FaceEmbeddings(trials.utts, np.ones((3, 4), np.float32), "sum"))


def read_record_file(folder: Path) -> None:
    records = RecordFile(folder / "train.rec")
    assert len(records.identities) == len(records)
    for i in range(len(records)):
        records.image(i)


def read_pack(folder: Path) -> None:
    pack = FacePack(folder / "faces.bin")
    for i in range(len(pack)):
        pack.image(i)


def face_family(file: str, read: object) -> Family:
    assert callable(read)
    return Family(f"faces {file}", file, build_faces, read)


def build_wespeakers(folder: Path) -> None:
    """Write a model as WeSpeaker publishes them, of a few hundred weights."""
    size = {"feat_dim": 8, "embed_dim": 4, "hid_dim": 4, "stats_dim": 4}
    weights = {**build_model("XVEC", **size).state_dict(), "projection.weight": torch.ones(6, 4)}
    document = saved(model="XVEC", dataset_args={"fbank_args": {"num_mel_bins": 8}})
    write_folder(folder, {**document, "model_args": size}, weights)


POINT = MeasuredPoint(
    threshold=0.5, tar=0.9, far=0.01, num_false_accepts=1, num_true_accepts=9, resolvable=True,
    far_upper=FarUpper(clopper_pearson=0.05, bootstrap=None),
)  # fmt: skip


def build_card(folder: Path) -> None:
    decision = Decision(
        trials="vox1_O", trials_sha256="0" * 64, num_target=10, num_nontarget=100, num_speakers=4, level=0.95,
        calibration=CosineCalibration(p_target=0.01, weight=20.0, offset=-5.0), target_far={"0.01": POINT},
    )  # fmt: skip
    Card(
        wespeaker_q="0.1.0", fingerprint="0" * 64, model="ResNet34", model_args={"feat_dim": 80}, embed_dim=2,
        sample_rate=16000, min_samples=1680, fbank=FbankSettings(num_mel_bins=80, frame_length=25, frame_shift=10),
        training={"exp_dir": "exp/x"}, mean_vec=(0.1, -0.2), decision=decision,
    ).write(folder / "card.json")  # fmt: skip


def build_thresholds(folder: Path) -> None:
    file = {"file": "exp/x/embeddings/vox1/xvector.scp", "sha256": "0" * 64}
    points = {"num_target": 10, "num_nontarget": 100, "num_speakers": None, "trials_sha256": "0" * 64} | {
        "target_far": {"0.01": POINT.model_dump()}
    }
    thresholds = {"score": "cosine", "embeddings": file, "mean_vec": file, "model": file, "level": 0.95}
    (folder / "threshold.json").write_text(json.dumps(thresholds | {"trials": {"vox1_O": points}}))


def build_calibration(folder: Path) -> None:
    save_calibration(folder / "c.json", CALIBRATION)


WESPEAKERS = saved(
    do_lm=True,
    checkpoint="exp/a/models/model_0.pt",
    projection_args={"project_type": "sphereface2", "lanbuda": 0.7, "t": 3, "margin_type": "C"},
)
CARD = tiny_card(mean_vec=(0.5,) * DIM, decision=decision(**{"0.01": 0.5}))


def build_store(folder: Path) -> None:
    (folder / "a.sqlite").unlink(missing_ok=True)
    with open_store(folder / "a.sqlite", create=True) as store:
        for name in ("anna", "berta"):
            store.enrol(new_person(name, np.ones(DIM, np.float32), num_files=1, seconds=2.5), CARD)


def use_store(folder: Path) -> None:
    """Read everyone, add somebody and delete somebody, each of which may be refused."""
    with open_store(folder / "a.sqlite") as store:
        store.check_model(CARD)
        for person in store.people():
            assert np.isfinite(person.voiceprint).all()
    with open_store(folder / "a.sqlite", create=True) as store:
        store.enrol(new_person("carla", np.ones(DIM, np.float32), num_files=1, seconds=2.5), CARD, replace=True)
        store.forget("anna")


def use_model(folder: Path) -> None:
    assert load_embedder(folder / "a.onnx").embed(np.ones(800, np.float32)).shape == (DIM,)


CALIBRATION = Calibration("asnorm", 0.01, {"score": 1.5}, -0.5, 10, 20, "f" * 64)

FAMILIES = [
    Family("tar", "a.tar", build_shard, lambda folder: use_index(scan_shard(folder / "a.tar")), repair_tar),
    Family("tar index", "a.tar.index", build_index, lambda f: use_index(load_index(f / "a.tar")), repair_index),
    audio_family("wav of 16 bits", audio("WAV", "PCM_16")),
    audio_family("wav of 24 bits", audio("WAVEX", "PCM_24")),
    audio_family("flac", audio("FLAC", "PCM_16")),
    audio_family("m4a", encode_m4a(SAMPLES)),
    *map(set_family, ("wav.scp", "utt2spk", "utt2num_samples")),
    Family("raw.list", "set/raw.list", build_set, lambda folder: read_raw_list(folder / "set" / "raw.list").seconds),
    Family("raw.list with vad", "set/vad.list", build_set, lambda folder: read_cut(folder / "set" / "vad.list")),
    Family("vad", "set/vad", build_vad, lambda folder: read_cut(folder / "set")),
    Family("shard.list", "set/shard.list", build_set, lambda folder: read_shard_list(folder / "set" / "shard.list")),
    Family("utt2dur", "set/utt2dur", build_set, lambda folder: read_durations(folder / "set" / "utt2dur")),
    Family("ark", "xvector.ark", build_embeddings, read_embeddings),
    Family("scp", "xvector.scp", build_embeddings, read_embeddings),
    Family("npy", "mean_vec.npy", build_embeddings, lambda folder: load_mean_vec(folder / "mean_vec.npy")),
    Family("LMDB bank", "bank/data.mdb", build_bank, read_lmdb_bank),
    text_family("Kaldi's trials", "a/1 a/2 target\na/1 b/1 nontarget\nb/1 a/2 nontarget\n", read_trials),
    text_family("VoxCeleb's trials", "1 a/1 a/2\n0 a/1 b/1\n0 b/1 a/2\n", read_trials),
    text_family("trials without labels", "a/1 a/2\na/1 b/1\nb/1 a/2\n", read_unlabelled_trials),
    text_family("scores without labels", "a/1 a/2 0.512\na/1 b/1 -0.1\n", read_any_scores),
    text_family("scores", "a/1 a/2 0.512 target\na/1 b/1 -0.1 nontarget\n", read_scores),
    text_family(
        "normalised scores", "a b 0.5 target 3.5 4.5 .1 .2\na c 1 nontarget 3 4 0 .1\n", read_normalised_scores
    ),
    text_family("config", (ROOT / "conf" / "resnet34_qmargin.yaml").read_text(), load_config),
    text_family("WeSpeaker's config", yaml.dump(WESPEAKERS), load_config),
    *(Family(f"WeSpeaker's {name}", name, build_wespeakers, read_model) for name in ("config.yaml", "avg_model.pt")),
    Family("calibration", "c.json", build_calibration, lambda folder: load_calibration(folder / "c.json")),
    Family("model card", "card.json", build_card, lambda folder: Card.read(folder / "card.json")),
    Family("thresholds", "threshold.json", build_thresholds, lambda folder: read_thresholds(folder / "threshold.json")),
    *map(run_family, ("scores/results.json", "scores/t.score", "config.yaml", "env.json", "metrics.jsonl")),
    *(face_family(file, read_record_file) for file in ("train.rec", "train.idx")),
    face_family("faces.bin", read_pack),
    *(
        face_family(file, lambda f: read_templates(f / "tid_mid", f / "pairs", f / "points"))
        for file in ("tid_mid", "pairs", "points")
    ),
    face_family("faces.npz", lambda folder: load_face_embeddings([folder / "faces.npz"])),
    Family("onnx", "a.onnx", lambda folder: write_onnx(folder / "a.onnx", CARD), use_model),
    Family("store", "a.sqlite", build_store, use_store),
    Family("checkpoint", "a.pt", build_checkpoint, lambda folder: checkpoint.load(folder / "a.pt")),
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="wespeaker")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_damaged_files_are_a_sentence(family: Family, tmp_path: Path) -> None:
    count, refused = attack(family, tmp_path, examples=60)
    assert count >= 60
    assert 0 < refused <= count


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown by ``pytest -m slow tests/property/test_fuzz_readers.py``: how many files, how long, how much memory."""
    started, total = time.monotonic(), 0
    for number, family in enumerate(FAMILIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        count, refused = attack(family, folder, examples=100_000 // len(FAMILIES) + 1)
        total += count
        with capsys.disabled():
            print(f"\n{family.name}: {count:,} files, {refused:,} refused", end="")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with capsys.disabled():
        print(f"\n{total:,} damaged files in {time.monotonic() - started:.0f} s, peak {peak:.0f} MiB of memory")
    assert total >= 100_000
    assert peak < 2048
