"""The files of stage 8: one model in all of them, its thresholds those of stage 5, and nothing of another model."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import RATE, ROOT, run_command, write_wav
from run_folder import make_run
from safetensors import safe_open
from safetensors.torch import load_file

import wespeaker.deploy.export
from wespeaker.data.audio import AudioSource, read_audio
from wespeaker.data.trials import read_scores
from wespeaker.deploy.card import Card, model_sha256
from wespeaker.deploy.export import Exported, export
from wespeaker.deploy.graphs import backbone_graph
from wespeaker.deploy.parity import LIMIT, speechlike
from wespeaker.errors import InputError
from wespeaker.eval.embeddings import load_mean_vec
from wespeaker.eval.metrics import cllr, error_tradeoff
from wespeaker.interchange.models import load_speaker_net


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("exp") / "small")


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> Exported:
    return export(run_folder)


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    """The run folder, elsewhere, without what was exported."""
    ignored = shutil.ignore_patterns("final*", "card.json")
    return Path(shutil.copytree(run_folder, tmp_path / "moved", ignore=ignored))


def test_every_file_holds_the_same_card(exported: Exported, run_folder: Path):
    names = ["final.onnx", "final_feats.onnx", "final.safetensors", "card.json"]
    assert exported.files == [run_folder / "models" / name for name in names]
    assert Card.read(run_folder / "models" / "card.json") == exported.card
    for name in names[:2]:
        metadata = onnxruntime.InferenceSession(run_folder / "models" / name).get_modelmeta().custom_metadata_map
        assert Card.parse(metadata["card"], name) == exported.card
        assert (metadata["sample_rate"], metadata["min_samples"]) == ("16000", str(exported.card.min_samples))
        parity = json.loads(metadata["parity"])
        assert 0 < parity["max_difference"] < LIMIT
        assert parity["seconds"][-1] == 20.0
    with safe_open(run_folder / "models" / "final.safetensors", "np") as file:
        assert Card.parse(file.metadata()["card"], "safetensors") == exported.card


def test_safetensors_has_the_weights_and_they_the_fingerprint(exported: Exported, run_folder: Path):
    weights = torch.load(run_folder / "models" / "avg_model.pt", weights_only=True)
    found = load_file(run_folder / "models" / "final.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    card = exported.card
    assert card.fingerprint == model_sha256(
        {key: values.numpy() for key, values in found.items()},
        model=card.model, model_args=card.model_args, fbank=card.fbank, sample_rate=card.sample_rate,
    )  # fmt: skip


def test_the_card_says_what_the_run_is_and_has_the_thresholds_of_stage_5(exported: Exported, run_folder: Path):
    card = exported.card
    assert (card.model, card.embed_dim, card.sample_rate) == ("ResNet10", 8, RATE)
    assert card.training["checkpoint"] == "avg_model.pt"
    mean = load_mean_vec(run_folder / "embeddings" / "vox2_dev" / "mean_vec.npy")
    np.testing.assert_array_equal(card.mean_vec, mean)
    thresholds = json.loads((run_folder / "scores" / "threshold.json").read_text())["trials"]
    decision = card.decision
    assert decision is not None
    assert decision.trials == "all"  # of the most nontargets
    assert decision.note == "nobody spoke here"
    assert decision.at(0.1).threshold == thresholds["all"]["target_far"]["0.1"]["threshold"]
    assert (decision.num_target, decision.num_nontarget) == (60, 375)


def test_the_calibration_makes_log_likelihood_ratios_of_the_cosines(exported: Exported, run_folder: Path):
    decision = exported.card.decision
    assert decision is not None
    trials, scores = read_scores(run_folder / "scores" / "all.kaldi.score")
    llrs = [decision.llr(score) for score in scores]
    assert cllr(error_tradeoff(llrs, trials.is_target)) < 0.8  # 1 is that of knowing nothing


def test_the_same_run_gives_the_same_bytes(exported: Exported, copy: Path):
    again = export(copy)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in exported.files]


def test_a_run_without_scores_has_a_card_without_decision(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(copy / "scores")
    monkeypatch.setattr(wespeaker.deploy.export, "measure_parity", _few_lengths)
    found = export(copy, output_dir=tmp_path / "out")
    assert (found.card.decision, found.card.mean_vec) == (None, None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in found.files)
    with pytest.raises(InputError, match=r"threshold\.json does not exist; it is made by stage 5"):
        export(copy, trials="all")


_measure_parity = wespeaker.deploy.export.measure_parity


def _few_lengths(*args, **options):
    return _measure_parity(*args, **options, seconds=[0.5])


def _other_weights(folder: Path) -> None:
    weights = torch.load(folder / "models" / "avg_model.pt", weights_only=True)
    weights["seg_1.bias"] += 0.1
    torch.save(weights, folder / "models" / "avg_model.pt")


def _other_mean(folder: Path) -> None:
    np.save(folder / "embeddings" / "vox2_dev" / "mean_vec.npy", np.zeros(8, dtype=np.float32))


def _other_embeddings(folder: Path) -> None:
    scp = folder / "embeddings" / "vox1" / "xvector.scp"
    scp.write_text("".join(scp.read_text().splitlines(keepends=True)[:-1]))


def _other_scores(folder: Path) -> None:
    path = folder / "scores" / "all.kaldi.score"
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{a} {b} {float(score) / 2} {label}\n" for a, b, score, label in lines))


def _other_trials(folder: Path) -> None:
    shutil.copy(folder / "scores" / "few.kaldi.score", folder / "scores" / "all.kaldi.score")


def _normalised(folder: Path) -> None:
    path = folder / "scores" / "threshold.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score": "vox2_dev_asnorm300"}))


def _damaged(folder: Path) -> None:
    path = folder / "scores" / "threshold.json"
    path.write_text(path.read_text().replace('"num_target"', '"num_targets"'))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_other_weights, r"threshold\.json is of another model: weights that it was found with are .*average and"),
        (_other_mean, r"threshold\.json is of another model: the mean that it was found with is .*--mean_vec"),
        (_other_embeddings, r"threshold\.json was found with other embeddings than those of .*vox1/xvector\.scp"),
        (_other_scores, r"all\.kaldi\.score does not hold the scores that .*threshold\.json was found with"),
        (_other_trials, r"all\.kaldi\.score does not hold the scores that .*threshold\.json was found with"),
        (_normalised, r"threshold\.json has thresholds of vox2_dev_asnorm300 scores; .* cosines"),
        (_damaged, r"threshold\.json is not what stage 5 writes \(trials\.few\.num_target: Field required\)"),
    ],
)
def test_thresholds_of_another_model_are_refused(copy: Path, change: Callable[[Path], None], match: str):
    change(copy)
    with pytest.raises(InputError, match=match):
        export(copy)
    assert not list(copy.rglob("final*"))


def test_without_the_extra_its_name_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx is not installed.*\[export\]"):
        export(copy)


def test_an_unknown_list_is_refused_with_the_nearest(copy: Path):
    with pytest.raises(InputError, match=r"no thresholds of the trials 'al'; did you mean 'all'\?"):
        export(copy, trials="al")


def test_a_graph_that_is_not_the_network_is_not_written(copy: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(model: torch.nn.Module, *, num_mel_bins: int) -> onnx.ModelProto:
        _, other = load_speaker_net(copy)
        with torch.no_grad():
            other.model.seg_1.bias += 0.01
        return backbone_graph(other.model, num_mel_bins=num_mel_bins)

    monkeypatch.setattr(wespeaker.deploy.export, "backbone_graph", wrong)
    monkeypatch.setattr(wespeaker.deploy.export, "measure_parity", _few_lengths)
    with pytest.raises(InputError, match=r"^final\.onnx is not written: .* of their length and .* in cosine"):
        export(copy)
    assert not list(copy.rglob("final*"))
    assert not list(copy.rglob("*partial*"))


def test_numpy_soundfile_and_onnxruntime_alone_decide_as_the_run_does(
    exported: Exported, run_folder: Path, tmp_path: Path
):
    """examples/deploy/verify.py, where importing torch or this package is an error."""
    paths = [write_wav(tmp_path / f"{n}.wav", wav) for n, wav in enumerate(speechlike(2, 24_000, rate=RATE).numpy())]
    wavs = np.stack([read_audio(AudioSource(str(path))) for path in paths])
    _, net = load_speaker_net(run_folder)
    with torch.inference_mode():
        embeddings = net(torch.from_numpy(wavs)).double().numpy()
    a, b = embeddings - np.array(exported.card.mean_vec)
    cosine = a @ b / math.sqrt((a @ a) * (b @ b))
    assert exported.card.decision is not None
    threshold = exported.card.decision.at(0.1).threshold
    done = verify(run_folder / "models" / "final.onnx", "0.1", *paths)
    assert done.returncode == 0, done.stderr
    found = done.stdout.replace(":", "").replace(",", "").split()  # accept cosine 0.5 threshold 0.4
    assert found[0] == ("accept" if cosine >= threshold else "reject")
    assert [float(found[2]), float(found[4])] == pytest.approx([cosine, threshold], abs=1e-4)
    short = write_wav(tmp_path / "short.wav", wavs[0, : exported.card.min_samples - 1])
    assert verify(run_folder / "models" / "final.onnx", "0.1", paths[0], short).returncode == 1


def verify(*args: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "examples" / "deploy" / "verify.py"
    alone = "import runpy, sys; sys.modules.update(torch=None, wespeaker=None); runpy.run_path(sys.argv.pop(1))"
    return run_command(sys.executable, "-c", alone, script, *args)
