"""Pictures in files: one folder for each identity, decoded to squares of one size."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wespeaker.errors import InputError, listing

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP")  # the decoders that Pillow may use; PPM is PGM's too
MAX_PIXELS = 1 << 26  # a few bytes can promise, and take, far more memory than a photograph


class ImageFolder:
    """The pictures below ``root/IDENTITY/``, sorted by identity and path; picture i is read when it is asked for.

    Args:
        root: folder with a folder for each identity, which may have folders of its own.
        identities: take these alone; None takes all.

    Attributes:
        root: as given.
        paths: of the pictures, relative to ``root``, with ``/``.

    Raises:
        InputError: there is no such folder or identity, no picture, or one that lies in no identity's folder.

    """

    def __init__(self, root: Path, identities: Collection[str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{self.root} (folder of images) is not a folder; it should hold one for each identity")
        entries = sorted(self.root.iterdir())
        stray = [path.name for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
        if stray:
            raise InputError(f"{self.root}: {listing(stray, 3)} must be in the folder of an identity; move or remove")
        folders = {path.name: path for path in entries if path.is_dir()}
        if identities is not None:
            if missing := sorted(set(identities) - folders.keys()):
                raise InputError(f"{self.root} has no folder for the identities {listing(missing, 3)}")
            folders = {name: folders[name] for name in sorted(set(identities))}
        self.paths = [path for folder in folders.values() for path in _pictures(folder, self.root)]
        if not self.paths:
            raise InputError(
                f"{self.root} holds no pictures ({', '.join(SUFFIXES)}); "
                f"expected them as {self.root / 'IDENTITY' / 'NAME.png'}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self, i: int) -> str:
        """Return whom picture i shows: the name of the folder."""
        return self.paths[i].partition("/")[0]

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return picture i, (H, W, 3) uint8 in RGB."""
        return read_image(self.root / self.paths[i])


def _pictures(folder: Path, root: Path) -> list[str]:
    """Return the sorted paths, relative to ``root``, of all pictures below a folder."""
    return sorted(
        (Path(parent) / name).relative_to(root).as_posix()
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    )


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the picture of a file, (H, W, 3) uint8 in RGB.

    Raises:
        InputError: the file cannot be read or decoded.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend or remove it") from None
    return decode_image(data, str(path))


def decode_image(data: bytes | memoryview, where: str) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, PGM, PPM, BMP or WebP file; a photograph is turned upright as its Exif data say.

    Args:
        data: the whole file.
        where: what it is, for the error.

    Returns:
        (H, W, 3) uint8, RGB; of a grey picture the three channels are equal.

    Raises:
        InputError: it is damaged, cut short, of another format, of 16 bits a pixel, or of more than 67 million pixels.

    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                problem = f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
            elif image.mode.startswith(("I", "F")):
                problem = f"has more than 8 bits a pixel (mode {image.mode})"
            else:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.UnidentifiedImageError:
        problem = f"is no picture of the formats {', '.join(FORMATS)}"
    # What Pillow's decoders raise; its warnings too, where they are made errors.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, Warning) as error:
        problem = f"cannot be decoded ({' '.join(str(error).split())})"
    raise InputError(f"{where} {problem}; replace or remove it")


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the largest square from the middle and resize it: by areas to a smaller one, bilinearly to a larger one.

    Args:
        image: (H, W, 3) uint8.
        size: height and width to return; an image that has them is returned as it is.

    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    method = Image.Resampling.BOX if size < side else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((size, size), method))


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of (H, W, 3) RGB as (H, W, 1): .299 R + .587 G + .114 B (ITU-R BT.601), rounded."""
    return np.array(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]
