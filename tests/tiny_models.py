"""Models of a few numbers for the tests of the command line: a run folder, an ONNX file, and their card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT, SMALL

from wespeaker.deploy.card import Card, Decision, FbankSettings

DIM = 16


def decision(**thresholds: float) -> Decision:
    """Thresholds by FAR, said to be measured on a list."""
    points = {
        far: {
            "threshold": threshold, "tar": 0.9, "far": float(far), "num_false_accepts": round(float(far) * 10_000),
            "num_true_accepts": 90, "resolvable": float(far) >= 1e-4,
            "far_upper": {"clopper_pearson": 2 * float(far), "bootstrap": None},
            "interval": {"far": [float(far) / 2, 2 * float(far)], "tar": [0.8, 0.95]},
        }
        for far, threshold in thresholds.items()
    }  # fmt: skip
    values: dict[str, Any] = {
        "trials": "vox1_O_cleaned", "trials_sha256": "a" * 64, "num_target": 100, "num_nontarget": 10_000,
        "num_speakers": 12, "level": 0.95, "calibration": {"p_target": 0.01, "weight": 20.0, "offset": -8.0},
        "target_far": points,
    }  # fmt: skip
    return Decision.model_validate(values)


def tiny_card(**changes: Any) -> Card:
    """The card of `write_onnx`'s model."""
    fbank = FbankSettings(num_mel_bins=80, frame_length=25.0, frame_shift=10.0)
    values = {
        "wespeaker_q": "0.1.0", "fingerprint": "f" * 64, "model": "Tiny", "model_args": {}, "embed_dim": DIM,
        "sample_rate": 16000, "min_samples": 400, "fbank": fbank,
    }  # fmt: skip
    return Card.model_validate({**values, **changes})


def write_onnx(path: Path, card: Card, *, input_name: str = "wav") -> Path:
    """Write a graph from samples (B, N) to the levels (B, D) behind D random filters of 25 ms, with a card."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    filters = np.random.default_rng(0).standard_normal((DIM, 1, 400)).astype(np.float32)
    one = numpy_helper.from_array(np.array([1]), "one")
    nodes = [
        helper.make_node("Unsqueeze", [input_name, "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "filters"], ["filtered"], strides=[160]),
        helper.make_node("Abs", ["filtered"], ["levels"]),
        helper.make_node("GlobalAveragePool", ["levels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["embs"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["B", "N"])],
        [helper.make_tensor_value_info("embs", TensorProto.FLOAT, ["B", DIM])],
        [numpy_helper.from_array(filters, "filters"), one],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"card": card.model_dump_json()})
    checker.check_model(model, full_check=True)
    save(model, path)
    return path


def write_run(folder: Path, *, seed: int = 0) -> Path:
    """Write a run folder with an untrained network, of which nothing was measured."""
    import torch

    from wespeaker.config import load_config
    from wespeaker.speaker_net import SpeakerNet
    from wespeaker.train import checkpoint

    config = load_config(ROOT / "conf" / "mini_qmargin.yaml", SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SpeakerNet(config)
    (folder / "models").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump())
    checkpoint.save(net.model.state_dict(), folder / "models" / checkpoint.AVERAGE)
    return folder
