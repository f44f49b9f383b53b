"""Encoded pictures, and folders that hold one folder of them for each identity."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wespeaker.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
_MAX_PIXELS = 1 << 26  # a picture of 8192 x 8192; a few bytes of PNG can claim, and take, far more memory


def decode_image(data: bytes | memoryview, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, BMP, WebP or PGM/PPM file.

    Args:
        data: the whole file.
        where: what it is, for the error, such as ``train.rec: record 7``.

    Returns:
        (H, W, 3) uint8, RGB; the three channels of a grey picture are the same.

    Raises:
        InputError: it is none of these, damaged, cut short, or of more than 67 million pixels.

    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height <= _MAX_PIXELS:
                return np.array(image.convert("RGB"))
            reason = f"it has {image.width} x {image.height} pixels"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    raise InputError(f"{where} cannot be decoded as {', '.join(_FORMATS)} ({reason}); replace it or leave it out")


def list_image_folder(root: Path) -> list[tuple[str, str]]:
    """List the pictures of ``root/<identity>/…``, sorted by identity and path, as torchvision's ImageFolder does.

    Returns:
        (identity, path relative to ``root`` with ``/``) of each picture; a folder without pictures is no identity.

    Raises:
        InputError: there is no such folder, or no picture in folders below it.

    """
    if not root.is_dir():
        raise InputError(f"{root} (the folder of images) does not exist")
    pictures = [
        (folder.name, path.relative_to(root).as_posix())
        for folder in sorted(path for path in root.iterdir() if path.is_dir())
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not pictures:
        raise InputError(
            f"{root} holds no pictures ({', '.join(SUFFIXES)}) in folders of identities; expected {root}/NAME/1.jpg"
        )
    return pictures
