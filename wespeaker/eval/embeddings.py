"""Embeddings on disk: Kaldi's ark and scp files, and the mean of a set."""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import kaldiio
import numpy as np
from kaldiio.matio import read_kaldi
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.manifest import read_lines
from wespeaker.errors import InputError, listing
from wespeaker.files import replacing, write_lines

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

BLOCK = 1024  # embeddings converted to float64 at a time: 2 MB at D = 256, the fastest of 512 … 32768 (cache)


def write_embeddings(folder: Path, embeddings: Iterable[tuple[str, np.ndarray]], *, expected: int) -> Path:
    """Write ``xvector.ark``, ``xvector.scp`` (sorted by key) and the mean ``mean_vec.npy``.

    The files take their names after the last embedding, so a failure leaves those of an earlier run as they were.

    Args:
        folder: where to.
        embeddings: (key, (D,)) pairs.
        expected: how many there must be.

    Returns:
        The scp file.

    Raises:
        InputError: what ``embeddings`` raises, or a wrong count.

    """
    ark, scp = folder / "xvector.ark", folder / "xvector.scp"
    count, total = 0, np.zeros(1)
    with replacing(ark) as new_ark, replacing(scp) as new_scp, replacing(folder / "mean_vec.npy") as new_mean:
        with kaldiio.WriteHelper(f"ark,scp:{new_ark},{new_scp}") as writer:
            for key, embedding in embeddings:
                writer(key, embedding)
                count, total = count + 1, total + embedding.astype(np.float64)
        if count != expected:
            raise InputError(f"{expected} embeddings were expected in {folder}, {count} came")
        entries = sorted(text.replace(str(new_ark), str(ark.resolve())) for _, text in read_lines(new_scp, "the scp"))
        write_lines(new_scp, entries)
        np.save(new_mean, (total / count).astype(np.float32))
    logger.info("%s: %d embeddings of %d dimensions", scp, count, len(total))
    return scp


def load_embeddings(scp: PathLike) -> tuple[list[str], NDArray[np.float32]]:
    """Read the vectors that a Kaldi ``xvector.scp`` points to.

    Lines are ``utt file.ark:offset``, the vectors binary floats. Nothing of what is read is executed: entries that
    are shell pipes are refused, and so are arks with Python pickles, both of which kaldiio would run.

    Returns:
        The U utterances in the order of the file, and their embeddings, (U, D) float32.

    Raises:
        InputError: with ``file:line`` for an entry that is not a readable vector, has another dimension than the
            first, or repeats an utterance; for a list that is missing or empty.
    """
    entries = _read_scp(scp)
    embeddings = np.empty((0, 0), dtype=np.float32)
    ark, open_path = None, None
    try:
        for row, (utt, (path, offset, where)) in enumerate(entries.items()):
            if path != open_path:  # neighbours share an ark
                if ark:
                    ark.close()
                try:
                    ark, open_path = open(path, "rb"), path  # noqa: SIM115 (closed below)
                except OSError as error:
                    raise InputError(f"{where}: cannot read {path} ({error.strerror}); extract again") from None
            assert ark is not None
            ark.seek(offset)
            if ark.read(2) != b"\0B":
                raise InputError(f"{where}: there is no binary Kaldi vector at {path}:{offset}; extract again")
            ark.seek(offset)
            try:
                vector = np.asarray(read_kaldi(ark))
            except (AssertionError, ValueError, struct.error, OSError) as error:
                raise InputError(f"{where}: the vector at {path}:{offset} is damaged ({error})") from None
            if row == 0:
                embeddings = np.empty((len(entries), vector.size), dtype=np.float32)
            if vector.shape != embeddings.shape[1:] or vector.size == 0:
                raise InputError(
                    f"{where}: the embedding of {utt} has shape {vector.shape}, "
                    f"where the first of the file has {embeddings.shape[1]} numbers"
                )
            embeddings[row] = vector
    finally:
        if ark:
            ark.close()
    return list(entries), embeddings


def load_mean_vec(path: PathLike) -> NDArray[np.float64]:
    """Read ``mean_vec.npy``, the mean of the training embeddings, (D,).

    Raises:
        InputError: for a file that is missing, is not a numpy array (pickles are refused) or is not a finite vector.
    """
    try:
        mean_vec = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it is made when the training set is extracted") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not an array saved by numpy ({error})") from None
    if mean_vec.ndim != 1 or mean_vec.dtype.kind != "f" or not np.isfinite(mean_vec).all():
        raise InputError(f"{path} must hold one vector of finite floats, found {mean_vec.dtype} {mean_vec.shape}")
    return mean_vec.astype(np.float64)


def find_rows(wanted: Sequence[str], utts: Sequence[str]) -> NDArray[np.intp]:
    """Return where each wanted utterance is among ``utts``, those that have embeddings.

    Raises:
        InputError: if some have none, naming the first ten.
    """
    index = {utt: row for row, utt in enumerate(utts)}
    missing = [utt for utt in wanted if utt not in index]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} utterances in the trials have no embedding: {listing(missing)}"
        )
    return np.array([index[utt] for utt in wanted], dtype=np.intp)


def check_mean_vec(mean_vec: ArrayLike | None, embed_dim: int) -> NDArray[np.float64]:
    """Return the vector to subtract from embeddings of ``embed_dim`` numbers, (D,); zeros for None.

    Raises:
        InputError: if it has another dimension.
    """
    mean = np.zeros(embed_dim) if mean_vec is None else np.asarray(mean_vec, dtype=np.float64)
    if mean.shape != (embed_dim,):
        raise InputError(
            f"the mean vector has shape {mean.shape}, the embeddings have {embed_dim} numbers; take both from one model"
        )
    return mean


def centred_norms(
    embeddings: NDArray[np.floating], rows: NDArray[np.intp], mean: NDArray[np.float64], *, names: Sequence[str]
) -> NDArray[np.float64]:
    """Return ``‖embedding - mean‖`` of some rows, in float64.

    Args:
        embeddings: (U, D).
        rows: (R,), indices into them.
        mean: (D,).
        names: (R,), what an error calls the rows.

    Returns:
        Norms, (R,) float64, positive and finite.

    Raises:
        InputError: for embeddings that are not finite or have no direction, naming the first ten.
    """
    norms = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        block = embeddings[rows[start : start + BLOCK]] - mean
        norms[start : start + BLOCK] = np.sqrt(np.einsum("ud,ud->u", block, block))
    bad = np.flatnonzero(~((norms > 0) & (norms < np.inf)))  # a NaN or inf anywhere makes the norm NaN or inf
    if bad.size:
        raise InputError(
            f"{bad.size} of {len(rows)} embeddings cannot be scored, because they hold NaN or inf or have norm 0"
            f"{' after subtraction of the mean' if mean.any() else ''}: " + listing([names[int(i)] for i in bad])
        )
    return norms


def _read_scp(scp: PathLike) -> dict[str, tuple[str, int, str]]:
    """Return (ark, offset, ``file:line``) of each utterance."""
    entries: dict[str, tuple[str, int, str]] = {}
    try:
        with open(scp, encoding="utf-8") as file:
            lines = list(file)
    except FileNotFoundError:
        raise InputError(f"{scp} does not exist; extract the embeddings first (stage 4)") from None
    except UnicodeDecodeError:
        raise InputError(f"{scp} is not a text file of lines 'utt file.ark:offset'") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        utt, _, source = line.strip().partition(" ")
        source = source.strip()
        if source.endswith("|") or source.startswith("|"):
            raise InputError(f"{scp}:{number}: '{source}' is a shell command; only 'file.ark:offset' is read")
        ark = re.fullmatch(r"(.+):(\d+)", source)
        if not ark:
            raise InputError(f"{scp}:{number}: expected 'utt file.ark:offset', found '{line.strip()}'")
        if utt in entries:
            raise InputError(f"{scp}:{number}: {utt} was already given at {entries[utt][2]}")
        entries[utt] = (ark[1], int(ark[2]), f"{scp}:{number}")
    if not entries:
        raise InputError(f"{scp} is empty; extract the embeddings first (stage 4)")
    return entries
