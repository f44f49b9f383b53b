"""Embeddings of images on disk: names, vectors and how mirror images were used, in one ``.npz`` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from wespeaker.errors import InputError, listing
from wespeaker.eval.faces.extraction import Flip
from wespeaker.files import open_plain, replacing


@dataclass(frozen=True, eq=False)
class FaceEmbeddings:
    """Embeddings of I images, by name.

    Attributes:
        images: (I,) names, unique.
        vectors: (I, D) float32.
        flip: how they were made, see `embed_images`.

    """

    images: Sequence[str]
    vectors: NDArray[np.float32]
    flip: Flip


def write_face_embeddings(path: Path, embeddings: FaceEmbeddings) -> None:
    """Write a file that `load_face_embeddings` and ``numpy.load`` read; it appears whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=np.array(embeddings.images), vectors=embeddings.vectors, flip=np.array(embeddings.flip))


def load_face_embeddings(paths: Sequence[Path]) -> FaceEmbeddings:
    """Read files of embeddings as one; nothing in them is executed.

    Args:
        paths: of one network, or of networks that share no image, such as those of a cross-validation.

    Raises:
        InputError: a file is missing or holds something else, or the files do not fit each other: an image is in two,
            or they were made with other sizes or mirror images.

    """
    if not paths:
        raise InputError("there are no embeddings: give at least one file")
    parts = [_load(Path(path)) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        for what, found, first in (
            ("numbers in an embedding", part.vectors.shape[1], parts[0].vectors.shape[1]),
            ("as use of mirror images", part.flip, parts[0].flip),
        ):
            if found != first:
                raise InputError(f"{path} has {found} {what}, {paths[0]} {first}; extract both in one way")
    names, counts = np.unique(np.concatenate([part.images for part in parts]), return_counts=True)
    if (repeated := names[counts > 1]).size:
        raise InputError(f"{repeated.size} images have several embeddings: {listing(repeated.tolist())}")
    images = [name for part in parts for name in part.images]
    return FaceEmbeddings(images, np.concatenate([part.vectors for part in parts]), parts[0].flip)


def _load(path: Path) -> FaceEmbeddings:
    try:
        with open_plain(path) as opened, np.load(opened, allow_pickle=False) as file:
            images, vectors, flip = (file[name] for name in ("images", "vectors", "flip"))
    except FileNotFoundError:
        raise InputError(f"{path} (embeddings) does not exist; make it with tools/extract_face.py") from None
    except InputError:
        raise
    except Exception as error:  # zip and npy readers raise nearly anything on damaged bytes
        raise InputError(
            f"{path} holds no embeddings of images ({error}); make it with tools/extract_face.py"
        ) from None
    fits = images.ndim == 1 and images.dtype.kind == "U" and vectors.ndim == 2 and len(vectors) == len(images)
    if not fits or vectors.dtype != np.float32 or str(flip) not in get_args(Flip):
        raise InputError(
            f"{path} holds {images.dtype} {images.shape} as images, {vectors.dtype} {vectors.shape} as vectors and "
            f"{flip} as flip, not the embeddings of images; make it again with tools/extract_face.py"
        )
    return FaceEmbeddings(images.tolist(), vectors, cast(Flip, str(flip)))
