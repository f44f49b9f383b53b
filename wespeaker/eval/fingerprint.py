"""SHA-256 fingerprints: which trials, embeddings and weights a threshold was found with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wespeaker.data.trials import LABELS, Trials


def trials_sha256(trials: Trials) -> str:
    """Return the hash of the sorted lines ``utt1 utt2 target|nontarget``, each with its newline.

    That is ``LC_ALL=C sort list.kaldi | sha256sum``, whatever the order and the format that the trials were read in.
    """
    labels = trials.is_target.tolist()
    lines = [f"{trials.name(i)} {LABELS[label]}\n".encode() for i, label in enumerate(labels)]
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def embeddings_sha256(utts: Sequence[str], embeddings: ArrayLike) -> str:
    """Return the hash of the utterances, sorted, each with a newline and its vector in little-endian float32.

    Where the files lie, and in what order and how many arks, changes nothing.
    """
    vectors = np.asarray(embeddings, dtype="<f4")
    found = hashlib.sha256()
    for row in sorted(range(len(utts)), key=utts.__getitem__):
        found.update(utts[row].encode() + b"\n")
        found.update(vectors[row].tobytes())
    return found.hexdigest()


def file_fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the path and the hash of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return {"file": os.fspath(path), "sha256": found.hexdigest()}
