"""A run as files that others use without it: ONNX from waveforms and from features, safetensors, and the card."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wespeaker.config import Config
from wespeaker.deploy.card import CARD, EMBS, FEATS, METADATA_KEY, WAV, Card
from wespeaker.deploy.describe import describe, origin
from wespeaker.deploy.graphs import backbone_graph, waveform_graph
from wespeaker.deploy.measured import file_in_run, measured_decision, read_thresholds
from wespeaker.deploy.parity import LIMIT, Parity, check_parity, measure_parity
from wespeaker.eval.embeddings import check_mean_vec, load_mean_vec
from wespeaker.extras import require
from wespeaker.files import replacing
from wespeaker.interchange.models import load_speaker_net
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import weights_of

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

WAVEFORM_ONNX, FEATURES_ONNX, SAFETENSORS = "final.onnx", "final_feats.onnx", "final.safetensors"

_INTERFACES = {
    WAVEFORM_ONNX: f"{WAV}: (batch, samples) float32 in [-1, 1] at sample_rate, at least min_samples of them",
    FEATURES_ONNX: f"{FEATS}: (batch, frames, bins) float32, Kaldi's log mel filterbank of 16-bit steps with a Hamming "
    "window and no dither, minus its mean over the frames",
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how well the graphs agree with torch."""

    card: Card
    files: Sequence[Path]
    parity: Sequence[Parity]


def export(
    exp_dir: Path,
    *,
    checkpoint: Path | None = None,
    trials: str | None = None,
    mean_vec: Path | None = None,
    threshold: Path | None = None,
    p_target: float = 0.01,
    output_dir: Path | None = None,
) -> Exported:
    """Write card.json, final.onnx, final_feats.onnx and final.safetensors of a run.

    The graphs are compared with torch before anything is written. The card comes last and that of an earlier export
    goes first: where there is one, it is of the files beside it. The same run and packages give the same bytes.

    Args:
        exp_dir: a run folder, or a folder that WeSpeaker published.
        checkpoint: weights; None for the average of the last epochs.
        trials: the list whose thresholds the card gets; None for the one with the most nontarget trials.
        mean_vec: what is subtracted from embeddings; None for what the thresholds were found with.
        threshold: what stage 5 wrote; None for scores/threshold.json if there is one, else the card has no decision.
        p_target: prior of a target trial that the calibration is weighted to.
        output_dir: where to; None for ``models`` of the run folder.

    Raises:
        InputError: the extra ``export`` is not installed, something is wrong with a file, the thresholds are of
            another model, or a graph does not give the embeddings of torch.

    """
    onnx, safetensors = (require(name, extra="export") for name in ("onnx", "safetensors.torch"))
    config, net = load_speaker_net(exp_dir, checkpoint=checkpoint)
    weights = checkpoint or weights_of(exp_dir)
    card = _card(exp_dir, config, net, weights, trials, mean_vec, threshold, p_target)
    logger.info("making the graphs of %s", config.model)
    backbone = backbone_graph(net.model, num_mel_bins=card.fbank.num_mel_bins)
    graphs = {WAVEFORM_ONNX: waveform_graph(net.fbank, backbone), FEATURES_ONNX: backbone}
    logger.info("comparing them with torch")
    parity = measure_parity(
        net, {name: graph.SerializeToString() for name, graph in graphs.items()}, rate=card.sample_rate
    )
    check_parity(parity)
    folder = output_dir or exp_dir / "models"
    files = [folder / name for name in (*graphs, SAFETENSORS, CARD)]
    with replacing(files[0]) as new_wav, replacing(files[1]) as new_feats, replacing(files[2]) as new_weights:
        for (name, graph), path in zip(graphs.items(), (new_wav, new_feats), strict=True):
            _add_metadata(graph, _INTERFACES[name], card, [row for row in parity if row.graph == name])
            onnx.checker.check_model(graph, full_check=True)
            path.write_bytes(graph.SerializeToString(deterministic=True))
        # One entry of metadata, as several would come in any order.
        new_weights.write_bytes(safetensors.save(net.model.state_dict(), {METADATA_KEY: card.model_dump_json()}))
        files[-1].unlink(missing_ok=True)  # where there is a card, it is of the files beside it
    card.write(files[-1])
    return Exported(card, files, parity)


def _card(
    exp_dir: Path,
    config: Config,
    net: SpeakerNet,
    weights: Path,
    trials: str | None,
    mean_vec: Path | None,
    threshold: Path | None,
    p_target: float,
) -> Card:
    """Return the card of a run, with its thresholds if there are any."""
    path = threshold or exp_dir / "scores" / "threshold.json"
    thresholds = read_thresholds(path) if threshold or trials or path.is_file() else None
    if mean_vec is None and thresholds is not None and thresholds.mean_vec is not None:
        mean_vec = file_in_run(exp_dir, thresholds.mean_vec)
    mean = None if mean_vec is None else check_mean_vec(load_mean_vec(mean_vec), config.model_args.embed_dim)
    decision = None
    if thresholds is not None:
        decision = measured_decision(
            path, thresholds, exp_dir=exp_dir, weights=weights, mean_vec=mean_vec, trials=trials, p_target=p_target
        )
    return describe(net, config, training=origin(exp_dir, config, weights), mean_vec=mean, decision=decision)


def _add_metadata(graph: ModelProto, interface: str, card: Card, parity: Sequence[Parity]) -> None:
    """Put into a graph what a user needs who has nothing else: the card, and its main values in plain words."""
    compared = {
        "seconds": sorted({row.seconds for row in parity}),
        "max_difference": max(row.difference for row in parity),
        "max_cosine_distance": max(row.cosine_distance for row in parity),
        "limit": LIMIT,
        "onnxruntime": require("onnxruntime", extra="export").__version__,
        "torch": str(torch.__version__),
    }
    values = {
        METADATA_KEY: card.model_dump_json(),
        "wespeaker_q": card.wespeaker_q,
        "input": interface,
        "output": f"{EMBS}: (batch, {card.embed_dim}) float32; minus mean_vec of the card before their cosine",
        "sample_rate": str(card.sample_rate),
        "min_samples": str(card.min_samples),
        "parity": json.dumps(compared),
    }
    require("onnx.helper", extra="export").set_model_props(graph, values)
