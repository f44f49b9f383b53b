"""Training examples of faces: an image and an epoch give a square in [-1, 1], as likely as not mirrored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from wespeaker.data.dataset import MAX_TRIES
from wespeaker.data.faces.folder import square, to_grey
from wespeaker.data.randomness import generator
from wespeaker.data.sampler import Item
from wespeaker.errors import InputError

HALF_RANGE = 127.5  # of a byte


class ImageSource(Protocol):
    """N images: a folder, a RecordIO file, a verification pack, rendered faces."""

    def __len__(self) -> int:
        """Return N."""

    def image(self, i: int, /) -> NDArray[np.uint8]:
        """Return image i, (H, W, 3) uint8 in RGB; raise an InputError where it cannot be had."""


class FaceSource(ImageSource, Protocol):
    """N images and whom they show."""

    def identity(self, i: int, /) -> int | str:
        """Return whom image i shows."""


class FaceExample(NamedTuple):
    """One training example."""

    image: NDArray[np.float32]  # (C, H, W) in [-1, 1]
    label: int
    key: str
    bad: list[tuple[str, str]]  # key and reason of the images that this one came instead of, mostly none


@dataclass
class FaceBatch:
    """B training examples."""

    images: torch.Tensor  # (B, C, H, W) float32 in [-1, 1]
    labels: torch.Tensor  # (B,) int64
    keys: list[str]
    bad: list[tuple[str, str]]  # of all examples

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the network takes."""
        return (self.images,)

    def pin_memory(self) -> FaceBatch:
        """Move to page-locked memory, from where a GPU copies while it computes; the loader calls this."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> FaceBatch:
        """Move to a device; the copy from page-locked memory does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> FaceBatch:
        return FaceBatch(move(self.images), move(self.labels), self.keys, self.bad)


@dataclass(frozen=True)
class FittedImages:
    """The images of a source as a network takes them, but for their range: squares of one size, in colour or grey.

    Attributes:
        source: of the images.
        size: height and width in pixels; of an image that is no square the middle is taken.
        channels: 3, or 1 for grey.

    Raises:
        InputError: ``channels`` is neither 1 nor 3.

    """

    source: ImageSource
    size: int
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")

    def __len__(self) -> int:
        return len(self.source)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return image i, (size, size, channels) uint8."""
        image = square(self.source.image(i), self.size)
        return to_grey(image) if self.channels == 1 else image


def normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (H, W, C) uint8 as (C, H, W) float32 in [-1, 1]: (x - 127.5) / 127.5, as ArcFace's networks are fed."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return (pixels - np.float32(HALF_RANGE)) / np.float32(HALF_RANGE)


class FaceSet(Dataset[FaceExample | InputError]):
    """Images of a source; an item is (epoch, index), and every draw a function of (seed, epoch, index).

    An image that cannot be decoded is replaced by another one that its own generator draws, so that batches keep
    their size; the example says so.

    Args:
        source: of the images.
        size: height and width of the examples in pixels.
        channels: 3, or 1 for grey.
        seed: of the run.

    Attributes:
        images: of the source, fitted.
        class_names: the identities, sorted; class c is the c-th.
        labels: (N,) int64, class of each image of the source.

    Raises:
        InputError: there are fewer than two identities, or ``channels`` is neither 1 nor 3.

    """

    def __init__(self, source: FaceSource, *, size: int, channels: int = 3, seed: int) -> None:
        self.images, self.seed = FittedImages(source, size, channels), seed
        identities, labels = np.unique([source.identity(i) for i in range(len(source))], return_inverse=True)
        if len(identities) < 2:
            raise InputError(f"training needs images of at least two identities, there are {len(identities)}")
        self.class_names = [str(identity) for identity in identities]
        self.labels = labels.astype(np.int64)

    @property
    def num_classes(self) -> int:
        """How many identities there are."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: Item) -> FaceExample | InputError:
        """Return an example, or the error: loader processes would bury it in a traceback."""
        epoch, index = item
        rng = generator(self.seed, epoch, index)
        mirrored = rng.random() < 0.5
        bad: list[tuple[str, str]] = []
        for _ in range(MAX_TRIES):
            try:
                image = self.images.image(index)
            except InputError as error:
                bad.append((self.key(index), str(error)))
                index = int(rng.integers(len(self)))
                continue
            if mirrored:
                image = image[:, ::-1]
            return FaceExample(normalised(image), int(self.labels[index]), self.key(index), bad)
        return InputError(f"{MAX_TRIES} images in a row cannot be used for training; the last: {bad[-1][1]}")

    def key(self, index: int) -> str:
        """Return the name of an image in lists of unusable ones: its identity and its index in the source."""
        return f"{self.class_names[self.labels[index]]}/{index}"


def collate(examples: Sequence[FaceExample | InputError]) -> FaceBatch | InputError:
    """Stack examples; the first error of the batch takes its place."""
    good = []
    for example in examples:
        if isinstance(example, InputError):
            return example
        good.append(example)
    images, labels, keys, bad = zip(*good, strict=True)
    return FaceBatch(
        images=torch.from_numpy(np.stack(images)),
        labels=torch.tensor(labels),
        keys=list(keys),
        bad=[pair for replaced in bad for pair in replaced],
    )
