"""Models in all their forms as one kind of object."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import DIM, tiny_card, write_onnx, write_run

from wespeaker.deploy.embedder import load_embedder
from wespeaker.errors import InputError
from wespeaker.interchange.models import load_speaker_net

WAV = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10


def test_a_run_folder_embeds_as_its_network(tmp_path: Path):
    run = write_run(tmp_path / "run")
    config, net = load_speaker_net(run)
    embedder = load_embedder(run)
    with torch.inference_mode():
        expected = net(torch.from_numpy(WAV)[None])[0].numpy()
    np.testing.assert_array_equal(embedder.embed(WAV), expected)
    card = embedder.card
    assert (card.model, card.sample_rate, card.min_samples) == (config.model, 16000, net.min_samples)
    assert (card.mean_vec, card.decision) == (None, None)


def test_a_published_folder_is_the_same_model(tmp_path: Path):
    run, published = write_run(tmp_path / "run"), tmp_path / "published"
    published.mkdir()
    for name in ("config.yaml", "models/avg_model.pt"):
        shutil.copy(run / name, published)
    ours, theirs = load_embedder(run), load_embedder(published)
    assert theirs.card.fingerprint == ours.card.fingerprint
    np.testing.assert_array_equal(theirs.embed(WAV), ours.embed(WAV))


def test_other_weights_have_another_fingerprint(tmp_path: Path):
    one, two = (load_embedder(write_run(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert one.card.fingerprint != two.card.fingerprint


def test_an_onnx_file_embeds_as_its_graph(tmp_path: Path):
    embedder = load_embedder(write_onnx(tmp_path / "a.onnx", tiny_card()))
    filters = np.random.default_rng(0).standard_normal((DIM, 1, 400))
    windows = np.lib.stride_tricks.sliding_window_view(WAV, 400)[::160]
    np.testing.assert_allclose(embedder.embed(WAV), np.abs(windows @ filters[:, 0].T).mean(axis=0), rtol=1e-4)
    assert embedder.card == tiny_card()


def test_a_model_that_gives_nonsense_is_a_sentence(tmp_path: Path):
    embedder = load_embedder(write_onnx(tmp_path / "a.onnx", tiny_card(embed_dim=DIM + 1)))
    with pytest.raises(
        InputError, match=r"an embedding of shape \(16,\) or with numbers that are not finite, where 17"
    ):
        embedder.embed(WAV)
    with pytest.raises(InputError, match="not finite"):
        load_embedder(write_onnx(tmp_path / "b.onnx", tiny_card())).embed(np.full(800, np.inf, np.float32))
    with pytest.raises(InputError, match=r"b\.onnx cannot embed"):
        load_embedder(tmp_path / "b.onnx").embed(np.ones(100, np.float32))  # less than a filter
