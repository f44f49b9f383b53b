"""The model card: read as written, wrong ones refused by a sentence, and a fingerprint that a hand can repeat."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

from wespeaker.deploy.card import Card, FbankSettings, model_sha256
from wespeaker.errors import InputError

POINT = {
    "threshold": 0.25, "tar": 0.9, "far": 0.01, "num_false_accepts": 3, "num_true_accepts": 90, "resolvable": True,
    "far_upper": {"clopper_pearson": 0.026, "bootstrap": 0.03},
    "interval": {"far": [0.0, 0.02], "tar": [0.8, 0.95]},
}  # fmt: skip
DECISION = {
    "trials": "vox1_O_cleaned", "note": "of telephones", "trials_sha256": "a" * 64, "num_target": 100,
    "num_nontarget": 300, "num_speakers": 12, "level": 0.95,
    "calibration": {"p_target": 0.01, "weight": 20.0, "offset": -8.0},
    "target_far": {"0.01": POINT, "0.001": {**POINT, "threshold": 0.5}},
}  # fmt: skip
CARD = {
    "wespeaker_q": "0.1.0", "fingerprint": "0" * 64, "model": "ResNet34", "model_args": {"feat_dim": 80},
    "embed_dim": 3, "sample_rate": 16000, "min_samples": 1680,
    "fbank": {"num_mel_bins": 80, "frame_length": 25.0, "frame_shift": 10.0},
    "training": {"exp_dir": "exp/x"}, "mean_vec": [0.5, -1.0, 2.0], "decision": DECISION,
}  # fmt: skip


def parse(**changes: object) -> Card:
    return Card.parse(json.dumps({**CARD, **changes}), "a card")


def test_a_card_is_read_as_it_was_written(tmp_path: Path):
    card = parse()
    card.write(tmp_path / "card.json")
    assert Card.read(tmp_path / "card.json") == card
    assert json.loads((tmp_path / "card.json").read_text()) == CARD


def test_a_card_needs_no_decision_mean_or_training():
    bare = Card.parse(json.dumps({key: CARD[key] for key in list(CARD)[:8]}), "a card")
    assert (bare.training, bare.mean_vec, bare.decision) == ({}, None, None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"colour": "blue"}, "colour: Extra inputs"),
        ({"embed_dim": 4}, "the document: mean_vec has 3 numbers, embeddings have 4"),
        ({"fingerprint": "0" * 63}, "fingerprint: String should match"),
        ({"sample_rate": "16000"}, "sample_rate: Input should be a valid integer"),
        ({"mean_vec": [0.5, float("nan"), 2.0]}, r"mean_vec\.1: Input should be a finite number"),
        ({"decision": {**DECISION, "target_far": {}}}, r"decision\.target_far: .*at least 1 item"),
    ],
)
def test_what_is_no_card_is_refused_by_a_sentence(changes: dict[str, object], match: str):
    with pytest.raises(InputError, match=rf"^a card is no model card that this version reads \({match}.*stage 8\)$"):
        parse(**changes)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"card\.json \(a model card\) does not exist; export"):
        Card.read(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"card\.json is no model card .*the document: Invalid JSON"):
        Card.read(tmp_path / "card.json")


def test_only_measured_operating_points_are_given():
    decision = parse().decision
    assert decision is not None
    assert decision.at(0.001).threshold == 0.5
    assert decision.at(1e-2).threshold == 0.25
    with pytest.raises(InputError, match=r"FAR 0\.005 on vox1_O_cleaned, there are 0\.01, 0\.001; ask"):
        decision.at(0.005)


def test_the_calibration_is_linear():
    decision = parse().decision
    assert decision is not None
    assert (decision.llr(0.4), decision.llr(0.5)) == pytest.approx((0.0, 2.0))


def test_the_fingerprint_is_of_these_very_bytes():
    weights = {"b": np.array([1.0, -2.0], dtype=np.float32), "a.count": np.array(7)}
    found = fingerprint(weights)
    settings = (
        b'{"fbank": {"frame_length": 25.0, "frame_shift": 10.0, "num_mel_bins": 80}, "model": "XVEC", '
        b'"model_args": {"embed_dim": 2}, "sample_rate": 8000}\n'
    )
    content = b"a.count <i8 \n" + bytes([7, 0, 0, 0, 0, 0, 0, 0]) + b"b <f4 2\n" + bytes.fromhex("0000803f 000000c0")
    assert found == hashlib.sha256(settings + content).hexdigest()


def test_the_fingerprint_changes_with_any_weight_name_shape_or_setting():
    weights = {"b": np.arange(4, dtype=np.float32)}
    others = [
        fingerprint({"b": np.array([0, 1, 2, 3.5], dtype=np.float32)}),
        fingerprint({"c": weights["b"]}),
        fingerprint({"b": weights["b"].reshape(2, 2)}),
        fingerprint({"b": weights["b"].view(np.int32)}),
        fingerprint(weights, model="ResNet34"),
        fingerprint(weights, frame_shift=12.5),
    ]
    assert len({fingerprint(weights), *others}) == 7
    assert fingerprint({"b": weights["b"].astype(">f4")}) == fingerprint(weights)


def fingerprint(weights: dict[str, np.ndarray], *, model: str = "XVEC", frame_shift: float = 10.0) -> str:
    fbank = FbankSettings(num_mel_bins=80, frame_length=25.0, frame_shift=frame_shift)
    return model_sha256(weights, model=model, model_args={"embed_dim": 2}, fbank=fbank, sample_rate=8000)


def test_a_card_is_read_without_torch_and_scipy():
    script = "import sys, wespeaker.deploy.card; sys.exit(bool({'torch', 'scipy'} & sys.modules.keys()))"
    assert run_command(sys.executable, "-c", script).returncode == 0
