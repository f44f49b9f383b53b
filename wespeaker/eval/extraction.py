"""Embeddings of whole utterances: deterministic, shared by processes, one front end with training, failures listed."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wespeaker.data.audio import read_audio
from wespeaker.data.manifest import Utterance
from wespeaker.data.resampling import resample
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import load_embeddings, write_embeddings
from wespeaker.lock import locked
from wespeaker.progress import progress
from wespeaker.ranks import ALONE, Ranks, gathered, shares, wait_for_all
from wespeaker.speaker_net import SpeakerNet

logger = logging.getLogger(__name__)

MAX_BATCH_SECONDS = 64.0  # of audio in one forward pass


class _WholeUtterances(Dataset[tuple[np.ndarray, str] | InputError]):
    def __init__(self, utterances: Sequence[Utterance], *, rate: int, min_samples: int) -> None:
        self.utterances, self.rate, self.min_samples = utterances, rate, min_samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, str] | InputError:
        utt = self.utterances[index]
        try:
            wav = resample(read_audio(utt.source), Fraction(utt.length[1], self.rate))
        except InputError as error:
            return error
        if len(wav) < self.min_samples:
            return InputError(
                f"{utt.key} is too short: {len(wav) / self.rate:.3f} s, "
                f"the model needs {self.min_samples / self.rate:.3f} s"
            )
        return wav, utt.key


def _collate(
    items: Sequence[tuple[np.ndarray, str] | InputError],
) -> tuple[torch.Tensor | None, list[str], list[InputError]]:
    good = [item for item in items if not isinstance(item, InputError)]
    wav = torch.from_numpy(np.stack([wav for wav, _ in good])) if good else None
    return wav, [key for _, key in good], [item for item in items if isinstance(item, InputError)]


def _batches(utterances: Sequence[Utterance]) -> list[list[int]]:
    """Group utterances of exactly the same length: nothing is padded, so an embedding is its utterance's alone."""
    batches: list[list[int]] = []
    for index in sorted(range(len(utterances)), key=lambda i: (utterances[i].length, utterances[i].key)):
        length = utterances[index].length
        if (
            batches
            and utterances[batches[-1][0]].length == length
            and (len(batches[-1]) + 1) * utterances[index].seconds <= MAX_BATCH_SECONDS
        ):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def extract(
    net: SpeakerNet,
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    rate: int,
    num_workers: int,
    ranks: Ranks,
    weights: Path | None = None,
    desc: str = "embeddings",
) -> Path:
    """Embed whole utterances, shared among the processes, and write the files of `write_embeddings`.

    The files are those of one process with as many threads, byte for byte: the batches are the same, and the first
    process brings together what each has left in ``folder/parts`` in the order of one. Copying them costs little: a
    million embeddings of 256 numbers take it a minute and 1 GB of memory.

    Args:
        net: in evaluation mode; its device is where the work is done.
        utterances: what to embed.
        folder: where to; on a file system that all machines share.
        rate: sample rate of the network in Hz.
        num_workers: processes that read audio, of each process.
        ranks: this process among those that share the work.
        weights: the file of the network's weights, to be noted.
        desc: what the progress bar says.

    Returns:
        The scp file.

    Raises:
        InputError: as `embed_utterances` does, in every process, or others write to the folder; the files of an earlier
            run stay as they were.

    """
    with locked(folder) if ranks.first else nullcontext():
        wait_for_all(ranks)
        return _extract(
            net, utterances, folder, rate=rate, num_workers=num_workers, ranks=ranks, weights=weights, desc=desc
        )


def _extract(
    net: SpeakerNet,
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    rate: int,
    num_workers: int,
    ranks: Ranks,
    weights: Path | None,
    desc: str,
) -> Path:
    batches = _batches(utterances)
    owners = _owners(utterances, batches, ranks)
    mine = [batch for batch, owner in zip(batches, owners, strict=True) if owner == ranks.rank]
    embeddings = _embed(net, utterances, mine, rate=rate, num_workers=num_workers, desc=desc, ranks=ranks)
    parts = folder / "parts"
    about: dict[str, Any] = {}  # of the files that the first process writes
    if ranks.first:
        about = {"utt2spk": {utt.key: utt.spk for utt in utterances}, "weights": weights}
    if ranks.world_size == 1:
        scp = write_embeddings(folder, embeddings, expected=len(utterances), **about)
        shutil.rmtree(parts, ignore_errors=True)  # of several processes that were killed
        return scp
    try:
        if mine:
            write_embeddings(parts / str(ranks.rank), embeddings, expected=sum(map(len, mine)))
        else:
            deque(embeddings, maxlen=0)  # none of its own, but failures to hear of
        wait_for_all(ranks)
        if ranks.first:
            found = _read_parts([parts / str(rank) for rank in sorted(set(owners))])
            keys = [utterances[index].key for batch in batches for index in batch]
            if odd := sorted(found.keys() ^ set(keys)):
                raise InputError(f"the nodes have not embedded the same list: {listing(odd)}; give all the same files")
            write_embeddings(folder, ((key, found.pop(key)) for key in keys), expected=len(keys), **about)
    finally:
        if ranks.first:
            shutil.rmtree(parts, ignore_errors=True)
    wait_for_all(ranks)
    return folder / "xvector.scp"


def _read_parts(folders: Sequence[Path]) -> dict[str, np.ndarray]:
    """Return the embeddings of several folders by key."""
    found: dict[str, np.ndarray] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} of another process is not here; several machines need a file system they share")
        keys, embeddings = load_embeddings(folder / "xvector.scp")
        twice = found.keys() & set(keys)
        if twice:
            raise InputError(f"{len(twice)} utterances were embedded twice: {listing(sorted(twice))}")
        found.update(zip(keys, embeddings, strict=True))
    return found


def _owners(utterances: Sequence[Utterance], batches: Sequence[Sequence[int]], ranks: Ranks) -> list[int]:
    """Return the rank that embeds each batch, so that all have as many seconds; those in a batch are equally long."""
    return shares([len(batch) * utterances[batch[0]].seconds for batch in batches], ranks.world_size)


def embed_utterances(
    net: SpeakerNet, utterances: Sequence[Utterance], *, rate: int, num_workers: int, desc: str = "embeddings"
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (key, embedding (D,) float32) of whole utterances, in the order of their lengths.

    Args:
        net: in evaluation mode; its device is where the work is done.
        utterances: what to embed.
        rate: sample rate of the network in Hz.
        num_workers: processes that read audio.
        desc: what the progress bar says.

    Raises:
        InputError: at the end, with the utterances that cannot be read, are too short, or give a non-finite
            embedding.

    """
    return _embed(net, utterances, _batches(utterances), rate=rate, num_workers=num_workers, desc=desc, ranks=ALONE)


@torch.inference_mode()
def _embed(
    net: SpeakerNet,
    utterances: Sequence[Utterance],
    batches: Sequence[list[int]],
    *,
    rate: int,
    num_workers: int,
    desc: str,
    ranks: Ranks,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the embeddings of some batches; the error at the end is of the batches of all processes."""
    device = next(net.parameters()).device
    dataset = _WholeUtterances(utterances, rate=rate, min_samples=net.min_samples)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=_collate)
    failed: list[str] = []
    with progress(loader, desc=desc, total=len(loader)) as bar:
        for wav, keys, errors in bar:
            failed += [str(error) for error in errors]
            if wav is None:
                continue
            embeddings = net(wav.to(device)).float().cpu().numpy()
            finite = np.isfinite(embeddings).all(axis=1)
            failed += [
                f"{key} has an embedding that is not finite" for key, ok in zip(keys, finite, strict=True) if not ok
            ]
            yield from ((key, vec) for key, vec, ok in zip(keys, embeddings, finite, strict=True) if ok)
    failed = [text for some in gathered(failed, ranks) for text in some]
    if failed:
        raise InputError(f"{len(failed)} of {len(utterances)} utterances have no embedding: {listing(failed)}")
