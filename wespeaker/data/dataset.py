"""Training examples: an utterance and an epoch give a crop, perturbed, augmented and dithered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from wespeaker.config import DatasetArgs
from wespeaker.data.audio import read_crop
from wespeaker.data.augment import Augmenter
from wespeaker.data.features import INT16_SCALE, Fbank
from wespeaker.data.manifest import read_raw_list
from wespeaker.data.randomness import generator
from wespeaker.data.sampler import Item
from wespeaker.data.shards import read_shard_list
from wespeaker.data.utterances import UtteranceTable
from wespeaker.errors import InputError, listing

logger = logging.getLogger(__name__)

SPEEDS = (Fraction(1), Fraction(9, 10), Fraction(11, 10))
READERS = {"raw": read_raw_list, "shard": read_shard_list}


def make_fbank(args: DatasetArgs) -> Fbank:
    """Return the front end that a config asks for."""
    return Fbank(
        num_mel_bins=args.fbank_args.num_mel_bins,
        frame_length=args.fbank_args.frame_length,
        frame_shift=args.fbank_args.frame_shift,
        sample_rate=args.resample_rate,
    )


def shortest_sec(args: DatasetArgs) -> float:
    """Return how long an utterance must be for training, in seconds; 0 where none is left out."""
    if not args.filter:
        return 0.0
    return make_fbank(args).num_samples(max(1, args.filter_args.min_num_frames)) / args.resample_rate


def read_training_list(path: Path, data_type: str, args: DatasetArgs) -> UtteranceTable:
    """Read a raw.list or shard.list and leave out what is too short.

    Raises:
        InputError: fewer than two speakers are left.

    """
    utterances = READERS[data_type](path)
    shortest = shortest_sec(args)
    short = utterances.seconds < shortest
    if np.any(short):
        logger.info(
            "left out %d of %d utterances shorter than %.2f s (filter_args.min_num_frames): %s",
            np.count_nonzero(short), len(utterances), shortest,
            listing(list(utterances.select(short).keys), 3),
        )  # fmt: skip
        utterances = utterances.select(~short)
    if len(utterances.speakers) < 2:
        raise InputError(f"{path}: training needs utterances of at least two speakers, {len(utterances)} are left")
    return utterances


@dataclass
class Batch:
    """B training examples."""

    wav: torch.Tensor  # (B, N) float32 in about [-1, 1]
    labels: torch.Tensor  # (B,) int64
    keys: list[str]

    def pin_memory(self) -> Batch:
        """Move to page-locked memory, from where a GPU copies while it computes; the loader calls this."""
        return Batch(self.wav.pin_memory(), self.labels.pin_memory(), self.keys)


class TrainingSet(Dataset[tuple[np.ndarray, int, str] | InputError]):
    """Crops of utterances; an item is (epoch, index), and every draw a function of (seed, epoch, utterance).

    With speed perturbation each speed of a speaker is a speaker of its own: class = speaker + speed x speakers,
    the speakers in sorted order.

    Args:
        utterances: the training set.
        args: the config's ``dataset_args``.
        augmenter: noise and reverberation.
        seed: of the run.

    """

    def __init__(self, utterances: UtteranceTable, args: DatasetArgs, augmenter: Augmenter, *, seed: int) -> None:
        self.utterances, self.augmenter, self.seed = utterances, augmenter, seed
        self.speakers = utterances.speakers
        self.speeds = SPEEDS if args.speed_perturb else SPEEDS[:1]
        self.num_classes = len(self.speakers) * len(self.speeds)
        self._rate = args.resample_rate
        self._num_samples = make_fbank(args).num_samples(args.num_frms)
        self._dither = args.fbank_args.dither / INT16_SCALE

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, item: Item) -> tuple[np.ndarray, int, str] | InputError:
        """Return (wav (N,), label, key), or the error: loader processes would bury it in a traceback."""
        try:
            return self._example(item)
        except InputError as error:
            return error

    def _example(self, item: Item) -> tuple[np.ndarray, int, str]:
        epoch, index = item
        utt = self.utterances[index]
        rng = generator(self.seed, epoch, utt.key)
        speed = int(rng.integers(len(self.speeds)))
        wav = read_crop(
            utt.source,
            utt.length,
            num_samples=self._num_samples,
            rate=self._rate,
            rng=rng,
            speed=self.speeds[speed],
        )
        wav = self.augmenter(wav, rng)
        if self._dither > 0:
            wav = wav + np.float32(self._dither) * rng.standard_normal(len(wav), dtype=np.float32)
        return wav, int(self.utterances.labels[index]) + speed * len(self.speakers), utt.key


def collate(examples: Sequence[tuple[np.ndarray, int, str] | InputError]) -> Batch | InputError:
    """Stack examples; the first error of the batch takes its place."""
    good = []
    for example in examples:
        if isinstance(example, InputError):
            return example
        good.append(example)
    wavs, labels, keys = zip(*good, strict=True)
    return Batch(torch.from_numpy(np.stack(wavs)), torch.tensor(labels), list(keys))
