"""Training examples: an utterance and an epoch give a crop, perturbed, augmented and dithered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from wespeaker.config import DatasetArgs
from wespeaker.data.augment import Augmenter
from wespeaker.data.crops import read_crop
from wespeaker.data.features import INT16_SCALE, Fbank
from wespeaker.data.manifest import NO_FEATURES, read_raw_list
from wespeaker.data.randomness import generator
from wespeaker.data.sampler import Item
from wespeaker.data.shards import read_shard_list
from wespeaker.data.spec_augment import draw_masks
from wespeaker.data.utterances import Utterance, UtteranceTable
from wespeaker.errors import InputError, listing, nearest

logger = logging.getLogger(__name__)

SPEEDS = (Fraction(1), Fraction(9, 10), Fraction(11, 10))
READERS: dict[str, Callable[[Path, DatasetArgs], UtteranceTable]] = {
    "raw": lambda path, args: read_raw_list(path),
    "shard": lambda path, args: read_shard_list(path, max_bad_utts=args.max_bad_utts),
}


def training_speeds(args: DatasetArgs) -> tuple[Fraction, ...]:
    """Return the speeds that training plays utterances at, each as often."""
    return SPEEDS if args.speed_perturb else SPEEDS[:1]


def count_classes(num_speakers: int, args: DatasetArgs) -> int:
    """Return how many classes training has: the speakers, times the speeds where each is a speaker of its own."""
    return num_speakers * (len(training_speeds(args)) if args.speed_as_new_speaker else 1)


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
        InputError: the list is of another type; fewer than two speakers are left.

    """
    if data_type not in READERS:
        why = f"{path}: {NO_FEATURES}" if data_type == "feat" else nearest(data_type, READERS)
        raise InputError(f"there is no data type '{data_type}'; {why}")
    utterances = READERS[data_type](path, args)
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


class Example(NamedTuple):
    """One training example."""

    wav: np.ndarray  # (N,) float32 in about [-1, 1]
    label: int
    key: str
    masks: np.ndarray  # (M, 2) int64, bands of SpecAugment; M is 0 without it
    bad: list[tuple[str, str]]  # key and reason of the utterances that this one came instead of, mostly none


@dataclass
class Batch:
    """B training examples."""

    wav: torch.Tensor  # (B, N) float32 in about [-1, 1]
    labels: torch.Tensor  # (B,) int64
    masks: torch.Tensor  # (B, M, 2) int64
    keys: list[str]
    bad: list[tuple[str, str]]  # of all examples

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What `SpeakerNet` is called with."""
        return self.wav, self.masks

    def pin_memory(self) -> Batch:
        """Move to page-locked memory, from where a GPU copies while it computes; the loader calls this."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """Move to a device; the copy from page-locked memory does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(move(self.wav), move(self.labels), move(self.masks), self.keys, self.bad)


MAX_TRIES = 10  # utterances in a row that cannot be used, before the data as a whole is at fault
DITHER_SAMPLES = 1 << 20


@lru_cache(maxsize=1)
def _gaussian_tape(num_samples: int) -> np.ndarray:
    """Return standard Gaussian noise (num_samples,) float32; always the same."""
    return generator("dither").standard_normal(num_samples, dtype=np.float32)


class TrainingSet(Dataset[Example | InputError]):
    """Crops of utterances; an item is (epoch, index), and every draw a function of (seed, epoch, utterance).

    With speed perturbation each speed of a speaker is a speaker of its own, unless ``speed_as_new_speaker`` is off:
    class = speaker + speed x speakers, the speakers in sorted order.

    An utterance that cannot be read, or whose samples are not finite, is replaced by another one that its own
    generator draws, so that batches keep their size; the example says so.

    Args:
        utterances: the training set.
        args: the config's ``dataset_args``.
        augmenter: noise and reverberation.
        seed: of the run.

    """

    def __init__(self, utterances: UtteranceTable, args: DatasetArgs, augmenter: Augmenter, *, seed: int) -> None:
        self.utterances, self.augmenter, self.seed = utterances, augmenter, seed
        self.speakers = utterances.speakers
        self.speeds = training_speeds(args)
        self._label_step = len(self.speakers) if args.speed_as_new_speaker else 0  # from one speed's class to the next
        self.num_classes = count_classes(len(self.speakers), args)
        self._args = args
        fbank = make_fbank(args)
        self._num_samples = fbank.num_samples(args.num_frms)
        dither = np.float32(args.fbank_args.dither / INT16_SCALE)
        tape = max(DITHER_SAMPLES, 2 * self._num_samples)
        self._dither = dither * _gaussian_tape(tape) if dither > 0 else None

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, item: Item) -> Example | InputError:
        """Return an example, or the error: loader processes would bury it in a traceback."""
        epoch, index = item
        rng = generator(self.seed, epoch, self.utterances[index].key)
        bad: list[tuple[str, str]] = []
        for _ in range(MAX_TRIES):
            utt = self.utterances[index]
            speed = int(rng.integers(len(self.speeds)))
            try:
                wav = self._crop(utt, self.speeds[speed], rng)
            except InputError as error:
                bad.append((utt.key, str(error)))
                index = int(rng.integers(len(self)))
                continue
            try:
                wav = self._dithered(self.augmenter(wav, rng), rng)
            except InputError as error:  # a bank's fault and not the utterance's
                return error
            label = int(self.utterances.labels[index]) + speed * self._label_step
            return Example(wav, label, utt.key, self._masks(rng), bad)
        return InputError(f"{MAX_TRIES} utterances in a row cannot be used for training; the last: {bad[-1][1]}")

    def _crop(self, utt: Utterance, speed: Fraction, rng: np.random.Generator) -> np.ndarray:
        return read_crop(
            utt.source, utt.length, num_samples=self._num_samples, rate=self._args.resample_rate, rng=rng, speed=speed
        )

    def _dithered(self, wav: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise from a random place of one long tape: drawing it anew would take as long as all other steps."""
        if self._dither is None:
            return wav
        start = int(rng.integers(len(self._dither) - len(wav) + 1))
        return wav + self._dither[start : start + len(wav)]

    def _masks(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the bands of SpecAugment, as the last of all, so that it changes no other draw."""
        if not self._args.spec_aug:
            return np.zeros((0, 2), dtype=np.int64)
        frames, bins = self._args.num_frms, self._args.fbank_args.num_mel_bins
        return draw_masks(self._args.spec_aug_args, num_frames=frames, num_mel_bins=bins, rng=rng)


def collate(examples: Sequence[Example | InputError]) -> Batch | InputError:
    """Stack examples; the first error of the batch takes its place."""
    good = []
    for example in examples:
        if isinstance(example, InputError):
            return example
        good.append(example)
    wavs, labels, keys, masks, bad = zip(*good, strict=True)
    return Batch(
        wav=torch.from_numpy(np.stack(wavs)),
        labels=torch.tensor(labels),
        masks=torch.from_numpy(np.stack(masks)),
        keys=list(keys),
        bad=[utt for replaced in bad for utt in replaced],
    )
