"""A run folder of a small network whose weights nobody trained, scored as stage 5 does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from torch import nn

from wespeaker.config import load_config
from wespeaker.data.trials import Trials, write_kaldi_trials
from wespeaker.deploy.parity import speechlike
from wespeaker.eval.embeddings import write_embeddings
from wespeaker.eval.scoring import evaluate_embeddings
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import save

SMALL_MODEL = ["model_args.m_channels=4", "model_args.embed_dim=8"]


def settled(net: SpeakerNet, *, rate: int = 16000) -> SpeakerNet:
    """Give batch normalisation the scales of no layer's start and the statistics of speech-like sounds, so that the
    embeddings of different sounds differ; in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        net.train()(speechlike(8, 2 * rate, rate=rate))
    return net.eval()


def make_run(folder: Path, *, changes: list[str] | None = None, seed: int = 0) -> Path:
    """Write config.yaml, models/avg_model.pt, embeddings of vox1 and vox2_dev, and two lists' scores and thresholds."""
    torch.manual_seed(seed)
    config = load_config(ROOT / "conf" / "mini_qmargin.yaml", [*SMALL_MODEL, *(changes or [])])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump())
    net = settled(SpeakerNet(config), rate=config.dataset_args.resample_rate)
    save(net.model.state_dict(), folder / "models" / "avg_model.pt")
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 8))
    utts = [f"id{spk}/{n}" for spk in range(6) for n in range(5)]
    vectors = (np.repeat(centres, 5, axis=0) + 0.8 * rng.standard_normal((30, 8)) + 0.3).astype(np.float32)
    embeddings = folder / "embeddings"
    for name in ("vox1", "vox2_dev"):
        pairs = zip(utts, vectors, strict=True)
        write_embeddings(embeddings / name, pairs, expected=30, weights=folder / "models" / "avg_model.pt")
    lists = []
    for name, count in (("few", 20), ("all", 30)):
        enroll, test = np.triu_indices(count, 1)
        trials = Trials(utts[:count], enroll, test, enroll // 5 == test // 5)
        write_kaldi_trials(folder / f"{name}.kaldi", trials)
        lists.append(folder / f"{name}.kaldi")
    evaluate_embeddings(
        embeddings / "vox1" / "xvector.scp",
        lists,
        output_dir=folder / "scores",
        mean_vec=embeddings / "vox2_dev" / "mean_vec.npy",
        target_fars=[0.1, 0.01],
        replicates=0,
        note="nobody spoke here",
    )
    return folder
