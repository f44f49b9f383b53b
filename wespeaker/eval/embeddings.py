"""Embeddings on disk: Kaldi's ark and scp files, and the mean of a set."""

from __future__ import annotations

import logging
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.manifest import read_lines
from wespeaker.documents import WRITTEN_BY, parse_json, write_json
from wespeaker.errors import InputError, listing
from wespeaker.eval.fingerprint import file_fingerprint
from wespeaker.files import find_listed, open_plain, replacing

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

BLOCK = 1024  # embeddings converted to float64 at a time: 2 MB at D = 256, the fastest of 512 … 32768 (cache)

XVECTOR, SPEAKER_XVECTOR = "xvector", "spk_xvector"  # names of ark and scp: of utterances, of means of speakers
WEIGHTS = "weights.json"  # beside them: the file of the weights that made them

MAX_DIM = 1 << 16  # numbers of an embedding; one that has more, which a damaged file may claim, is none

# How a binary vector of floats or doubles begins in an ark; its dimension, a 4-byte integer, follows.
_VECTOR_TYPES = {b"\0BFV \x04": "<f4", b"\0BDV \x04": "<f8"}


def write_embeddings(
    folder: Path,
    embeddings: Iterable[tuple[str, np.ndarray]],
    *,
    expected: int,
    utt2spk: Mapping[str, str] | None = None,
    weights: Path | None = None,
) -> Path:
    """Write ``xvector.ark``, ``xvector.scp`` (sorted by key) and the mean ``mean_vec.npy``.

    The files take their names after the last embedding, so a failure leaves those of an earlier run as they were. The
    scp comes last and that of an earlier run goes first: where there is one, it is of the other files beside it.

    Args:
        folder: where to.
        embeddings: (key, (D,)) pairs.
        expected: how many there must be.
        utt2spk: the speaker of each; where it is given, the means of the speakers' embeddings, which WeSpeaker's score
            normalisation takes as its cohort, go to ``spk_xvector.ark`` and ``spk_xvector.scp``.
        weights: the file of the weights that made them, whose fingerprint goes to ``weights.json``.

    Returns:
        The scp file.

    Raises:
        InputError: what ``embeddings`` raises, or a wrong count.

    """
    folder = folder.resolve()  # kaldiio takes a name that begins with | for a shell command, an absolute one does not
    count, total = 0, np.zeros(1)
    sums: dict[str, NDArray[np.float64]] = {}
    num_utts: Counter[str] = Counter()
    with _writing_vectors(folder / XVECTOR) as write, replacing(folder / "mean_vec.npy") as new_mean:
        for key, embedding in embeddings:
            write(key, embedding)
            exact = embedding.astype(np.float64)
            count, total = count + 1, total + exact
            if utt2spk is not None:
                spk = utt2spk[key]
                sums[spk] = sums[spk] + exact if spk in sums else exact
                num_utts[spk] += 1
        if count != expected:
            raise InputError(f"{expected} embeddings were expected in {folder}, {count} came")
        np.save(new_mean, (total / count).astype(np.float32))
        for name in (XVECTOR, SPEAKER_XVECTOR):
            (folder / name).with_suffix(".scp").unlink(missing_ok=True)
        (folder / WEIGHTS).unlink(missing_ok=True)
        if weights is not None:
            write_json(folder / WEIGHTS, file_fingerprint(weights))
        if utt2spk is not None:
            with _writing_vectors(folder / SPEAKER_XVECTOR) as write_mean:
                for spk, summed in sums.items():
                    write_mean(spk, (summed / num_utts[spk]).astype(np.float32))
    scp = folder / f"{XVECTOR}.scp"
    logger.info("%s: %d embeddings of %d dimensions", scp, count, len(total))
    return scp


@contextmanager
def _writing_vectors(stem: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Give what writes a vector to ``<stem>.ark``, which then appears, and last ``<stem>.scp``, sorted by key."""
    ark, scp = stem.with_suffix(".ark"), stem.with_suffix(".scp")
    with replacing(scp) as new_scp, replacing(ark) as new_ark:
        with kaldiio.WriteHelper(f"ark,scp:{new_ark},{new_scp}") as writer:
            yield writer
        entries = sorted(text.replace(str(new_ark), str(ark)) for _, text in read_lines(new_scp, "the scp"))
        new_scp.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8", newline="\n")


def load_embeddings(scp: PathLike) -> tuple[list[str], NDArray[np.float32]]:
    """Read the vectors that a Kaldi ``xvector.scp`` points to.

    Lines are ``utt file.ark:offset``, the vectors binary floats or doubles. An ark that is not where the scp says, as
    both were moved, is taken from beside it. Nothing of what is read is executed or waited for: entries that are shell
    pipes are refused, and so are arks with Python pickles, both of which kaldiio would run, and whatever is not a plain
    file.

    Returns:
        The U utterances in the order of the file, and their embeddings, (U, D) float32.

    Raises:
        InputError: with ``file:line`` for an entry that is not a readable vector, has another dimension than the
            first, or repeats an utterance; for a list that is missing or empty.
    """
    entries = _read_scp(scp)
    embeddings = np.empty((0, 0), dtype=np.float32)
    ark: bytes | mmap.mmap = b""
    named = None
    for row, (utt, (path, offset, line)) in enumerate(entries.items()):
        if path != named:  # neighbours share an ark
            try:
                ark, named = _map_file(_find_ark(path, scp)), path
            except OSError as error:
                raise InputError(f"{scp}:{line}: cannot read {path} ({error.strerror}); extract again") from None
            except InputError as error:
                raise InputError(f"{scp}:{line}: {error}") from None
        dtype = _VECTOR_TYPES.get(ark[offset : offset + 6])
        if dtype is None:
            raise InputError(f"{scp}:{line}: there is no binary Kaldi vector at {path}:{offset}; extract again")
        start = offset + 10  # after the dimension, 4 bytes
        dim = int.from_bytes(ark[start - 4 : start], "little", signed=True)
        if not 0 < dim <= MAX_DIM:
            raise InputError(f"{scp}:{line}: the vector at {path}:{offset} claims {dim} numbers; extract again")
        if row == 0:
            try:
                embeddings = np.empty((len(entries), dim), dtype=np.float32)
            except MemoryError:
                raise InputError(f"{scp}: {len(entries)} embeddings of {dim} numbers do not fit into memory") from None
        if dim != embeddings.shape[1]:
            raise InputError(
                f"{scp}:{line}: the embedding of {utt} has shape ({dim},), "
                f"where the first of the file has {embeddings.shape[1]} numbers"
            )
        try:
            with np.errstate(over="ignore"):  # doubles beyond float32 become inf, which scoring refuses by name
                embeddings[row] = np.frombuffer(ark, dtype, dim, start)
        except ValueError:
            raise InputError(f"{scp}:{line}: the vector at {path}:{offset} is damaged: the file ends in it") from None
    return list(entries), embeddings


def _find_ark(path: str, scp: PathLike) -> str:
    """Return where an ark is that an scp names."""
    path, beside = find_listed(path, scp), os.path.join(os.path.dirname(scp), os.path.basename(path))
    if os.path.exists(path) or not os.path.isfile(beside):
        return path
    logger.info("%s names %s, which is not there; %s is taken", scp, path, beside)
    return beside


def _map_file(path: str) -> bytes | mmap.mmap:
    """Return the bytes of a file, read as they are asked for."""
    with open_plain(path) as file:
        empty = os.fstat(file.fileno()).st_size == 0
        return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_weights(scp: PathLike) -> dict[str, Any] | None:
    """Return the fingerprint of the weights that made embeddings; None where it was not noted.

    Raises:
        InputError: what lies beside the scp is no such note.

    """
    path = Path(scp).parent / WEIGHTS
    if not path.is_file():
        return None
    found = parse_json(path.read_text(encoding="utf-8", errors="replace"), path)
    if not (isinstance(found, dict) and isinstance(found.get("file"), str) and isinstance(found.get("sha256"), str)):
        raise InputError(f"{path} does not name a file of weights and its hash; extract again")
    return {key: value for key, value in found.items() if key != WRITTEN_BY}


def load_mean_vec(path: PathLike) -> NDArray[np.float64]:
    """Read ``mean_vec.npy``, the mean of the training embeddings, (D,).

    Raises:
        InputError: for a file that is missing, is not a numpy array (pickles are refused) or is not a finite vector.
    """
    try:
        # Mapped: a header that promises more than the file holds is an error then, before memory is taken for it.
        mean_vec = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it is made when the training set is extracted") from None
    except Exception as error:  # numpy evaluates the header as Python literals, of which anything may be raised
        raise InputError(f"{path} is not an array saved by numpy ({error})") from None
    fits = mean_vec.ndim == 1 and mean_vec.dtype.kind == "f" and mean_vec.size <= MAX_DIM
    if not (fits and np.isfinite(mean_vec).all()):
        raise InputError(f"{path} must hold one vector of finite floats, found {mean_vec.dtype} {mean_vec.shape}")
    return np.array(mean_vec, dtype=np.float64)


def find_rows(
    wanted: Sequence[str], utts: Sequence[str], *, what: str = "utterances in the trials"
) -> NDArray[np.intp]:
    """Return where each wanted utterance is among ``utts``, those that have embeddings.

    Args:
        wanted: (N,).
        utts: (U,).
        what: what an error calls the wanted ones.

    Raises:
        InputError: if some have none, naming the first ten.
    """
    index = {utt: row for row, utt in enumerate(utts)}
    rows = list(map(index.get, wanted))
    if None in rows:
        missing = [utt for utt in wanted if utt not in index]
        raise InputError(f"{len(missing)} of {len(wanted)} {what} have no embedding: {listing(missing)}")
    return np.array(rows, dtype=np.intp)


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


def _read_scp(scp: PathLike) -> dict[str, tuple[str, int, int]]:
    """Return ark, offset and number of the line of each utterance."""
    entries: dict[str, tuple[str, int, int]] = {}
    try:
        with open(scp, encoding="utf-8") as file:
            lines = list(file)
    except FileNotFoundError:
        raise InputError(f"{scp} does not exist; extract the embeddings first (stage 4)") from None
    except UnicodeDecodeError:
        raise InputError(f"{scp} is not a text file of lines 'utt file.ark:offset'") from None
    for number, line in enumerate(lines, 1):
        if not (fields := line.split(maxsplit=1)):
            continue
        utt, source = fields[0], "".join(fields[1:]).strip()
        if source.endswith("|") or source.startswith("|"):
            raise InputError(f"{scp}:{number}: '{source}' is a shell command; only 'file.ark:offset' is read")
        ark, _, offset = source.rpartition(":")
        if not (ark and offset.isascii() and offset.isdigit() and len(offset) < 20):
            raise InputError(f"{scp}:{number}: expected 'utt file.ark:offset', found '{line.strip()}'")
        if utt in entries:
            raise InputError(f"{scp}:{number}: {utt} was already given at {scp}:{entries[utt][2]}")
        entries[utt] = (ark, int(offset), number)
    if not entries:
        raise InputError(f"{scp} is empty; extract the embeddings first (stage 4)")
    return entries
