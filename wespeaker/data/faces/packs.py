"""Verification packs (``lfw.bin`` and the like): pairs of encoded pictures and whether they show one person."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.folder import decode_image
from wespeaker.data.faces.restricted import load_restricted
from wespeaker.data.trials import Trials
from wespeaker.errors import InputError, listing
from wespeaker.files import open_plain, replacing

_PROTOCOL = 4  # of Python 3.4 and later


class FacePack:
    """A pickle of ``(pictures, is_same)`` as InsightFace makes them; pair i is pictures 2 i and 2 i + 1.

    The pictures stay in the file, which is mapped, until they are asked for.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, holds anything else than two such lists, or they do not fit each other.

    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with open_plain(self.path) as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise InputError(f"{self.path} does not exist; make it with tools/make_face_pack.py") from None
        except ValueError:  # an empty file cannot be mapped
            raise InputError(f"{self.path} is empty; copy it or make it again") from None
        found = load_restricted(data, str(self.path))
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise InputError(f"{self.path} holds no pair of lists (pictures, is_same); it is no verification pack")
        self._pictures = self._checked_pictures(found[0])
        self.is_same = self._checked_labels(found[1])

    def __reduce__(self) -> tuple[type[FacePack], tuple[Path]]:
        return FacePack, (self.path,)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def num_pairs(self) -> int:
        """Number of pairs, N; there are 2 N pictures."""
        return len(self.is_same)

    @property
    def names(self) -> list[str]:
        """What the 2 N pictures are called, such as ``lfw.bin:0``."""
        return [f"{self.path.name}:{i}" for i in range(len(self))]

    def encoded(self, i: int) -> bytes:
        """Return picture i of 2 N as it is stored, most often a JPEG file."""
        return bytes(self._pictures[i])

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return picture i of 2 N, (H, W, 3) uint8 in RGB."""
        return decode_image(self.encoded(i), f"{self.path}: picture {i}")

    def _checked_pictures(self, found: object) -> Sequence[bytes | memoryview]:
        if not isinstance(found, list | tuple):
            raise InputError(f"{self.path}: expected a list of pictures, found {type(found).__name__}")
        pictures = [one.data if isinstance(one, np.ndarray) else one for one in found]
        odd = [i for i, one in enumerate(pictures) if not (isinstance(one, bytes) or _is_bytes(one))]
        if odd:
            raise InputError(
                f"{self.path}: picture {odd[0]} is {type(pictures[odd[0]]).__name__}, not an encoded picture; "
                "make the pack again with tools/make_face_pack.py"
            )
        return pictures

    def _checked_labels(self, found: object) -> NDArray[np.bool_]:
        """Return (N,) bool of a list or an array of booleans, or of 0 and 1."""
        if isinstance(found, list | tuple) and all(type(label) in (bool, int) for label in found):
            found = np.array(found)
        if not (isinstance(found, np.ndarray) and found.ndim == 1 and np.isin(found, (0, 1)).all()):
            raise InputError(f"{self.path}: expected a list of booleans after the pictures, whether a pair is the same")
        labels = found.astype(np.bool_)
        if 2 * len(labels) != len(self._pictures):
            raise InputError(
                f"{self.path}: {len(self._pictures)} pictures for {len(labels)} pairs; there must be two for each"
            )
        return labels


def _is_bytes(value: object) -> bool:
    return isinstance(value, memoryview) and value.ndim == 1 and value.format == "B"


def write_face_pack(path: Path, image_dir: Path, trials: Trials) -> tuple[int, int]:
    """Write the pairs of a trial list as a pack that InsightFace's programs read too.

    Files are stored as they are, after they were decoded once; one that is in several pairs is stored once.

    Args:
        path: where to.
        image_dir: folder that the keys of the trials are paths in.
        trials: N pairs.

    Returns:
        Height and width of the pictures.

    Raises:
        InputError: a file is missing, cannot be decoded, or has another size than the first.

    """
    missing = [key for key in trials.utts if not (image_dir / key).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(trials.utts)} pictures of the pairs are not in {image_dir}: {listing(missing)}; "
            "keys are paths in that folder"
        )
    files: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    for key in trials.utts:
        files.append((image_dir / key).read_bytes())
        height, width, _ = decode_image(files[-1], str(image_dir / key)).shape
        sizes.append((height, width))
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"{image_dir / key} has {width} x {height} pixels, {trials.utts[0]} {sizes[0][1]} x {sizes[0][0]}; "
                "all must have one size, align or resize them first"
            )
    order = np.stack([trials.enroll, trials.test], axis=1).reshape(-1).tolist()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(([files[i] for i in order], trials.is_target.tolist()), file, protocol=_PROTOCOL)
    return sizes[0]
