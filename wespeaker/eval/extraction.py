"""Embeddings of whole utterances: deterministic, one front end with training, failures listed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wespeaker.data.audio import read_audio
from wespeaker.data.manifest import Utterance
from wespeaker.data.resampling import resample
from wespeaker.errors import InputError, listing
from wespeaker.progress import progress
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


@torch.inference_mode()
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
    device = next(net.parameters()).device
    dataset = _WholeUtterances(utterances, rate=rate, min_samples=net.min_samples)
    loader = DataLoader(dataset, batch_sampler=_batches(utterances), num_workers=num_workers, collate_fn=_collate)
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
    if failed:
        raise InputError(f"{len(failed)} of {len(utterances)} utterances have no embedding: {listing(failed)}")
