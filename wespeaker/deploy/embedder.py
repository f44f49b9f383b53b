"""A trained model as a function from samples to an embedding: a folder by torch, an ONNX file without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.deploy.card import CARD, EMBS, METADATA_KEY, WAV, Card
from wespeaker.deploy.recording import Recording, read_recording
from wespeaker.errors import InputError
from wespeaker.extras import require
from wespeaker.files import open_plain


@dataclass(frozen=True)
class Embedder:
    """A model and what is to be known of it; `load_embedder` makes one."""

    card: Card
    network: Callable[[NDArray[np.float32]], NDArray[np.float32]]  # samples (1, N) to embeddings (1, D)

    def read(self, path: str) -> Recording:
        """Read a recording as the model wants it.

        Raises:
            InputError: as of `read_recording`.

        """
        return read_recording(path, rate=self.card.sample_rate, min_samples=self.card.min_samples)

    def embed(self, wav: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embedding (D,), the mean not subtracted, of a waveform.

        Args:
            wav: (N,) in [-1, 1], N at least ``card.min_samples``.

        Raises:
            InputError: the model gives something else than D finite numbers.

        """
        embedding = self.network(np.ascontiguousarray(wav[None], dtype=np.float32))[0]
        if embedding.shape != (self.card.embed_dim,) or not np.isfinite(embedding).all():
            raise InputError(
                f"the model gives an embedding of shape {embedding.shape} or with numbers that are not finite, where "
                f"{self.card.embed_dim} numbers were expected; export it again (stage 8)"
            )
        return embedding


def load_embedder(path: str | os.PathLike[str]) -> Embedder:
    """Load a model in any of its forms.

    Args:
        path: a run folder, with the decision of its ``models/card.json`` if it was exported; a folder that WeSpeaker
            published; or the file ``final.onnx`` of an export, for which torch need not be installed.

    Raises:
        InputError: it is none of these, or damaged.

    """
    path = Path(path)
    return _load_folder(path) if path.is_dir() else _load_onnx(path)


def _load_onnx(path: Path) -> Embedder:
    onnxruntime = require("onnxruntime", extra="export")
    try:
        with open_plain(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise InputError(f"{path} (a model) does not exist; name a run folder or an exported final.onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal; the errors are raised
    try:
        session = onnxruntime.InferenceSession(
            content,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # which would print
        )
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # its exceptions have no base of their own
        raise InputError(f"{path} cannot be read as an ONNX model ({_first_line(error)}); export it again") from error
    names = [part.name for part in (*session.get_inputs(), *session.get_outputs())]
    if METADATA_KEY not in metadata or names != [WAV, EMBS]:
        raise InputError(
            f"{path} is no model of this program from samples to embeddings (it goes from {names[0]} to {names[-1]} "
            f"and has {'a' if METADATA_KEY in metadata else 'no'} card); name the final.onnx of an export (stage 8)"
        )
    card = Card.parse(metadata[METADATA_KEY], path)

    def network(wav: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(session.run([EMBS], {WAV: wav})[0])
        except Exception as error:
            raise InputError(f"{path} cannot embed ({_first_line(error)}); export it again") from error

    return Embedder(card, network)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _load_folder(folder: Path) -> Embedder:
    import torch

    from wespeaker.deploy.describe import describe
    from wespeaker.interchange.models import load_speaker_net

    config, net = load_speaker_net(folder)
    card = describe(net, config)
    path = folder / "models" / CARD
    if path.is_file():
        exported = Card.read(path)
        if exported.fingerprint != card.fingerprint:
            raise InputError(
                f"{path} is of other weights than those of {folder} ({exported.fingerprint[:12]} and "
                f"{card.fingerprint[:12]}), so its thresholds do not hold; score and export again (stages 4, 5 and 8)"
            )
        card = exported

    @torch.inference_mode()
    def network(wav: NDArray[np.float32]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = net(torch.from_numpy(wav)).numpy()
        return embedding

    return Embedder(card, network)
