"""Where images come from: what a user names on the command line, opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.align import REFERENCE_SIZE, align_face
from wespeaker.data.faces.dataset import FaceSource, ImageSource
from wespeaker.data.faces.folder import ImageFolder, read_image
from wespeaker.data.faces.packs import FacePack
from wespeaker.data.faces.recordio import RecordFile
from wespeaker.data.faces.templates import read_media
from wespeaker.data.manifest import read_lines
from wespeaker.errors import InputError, listing


def open_faces(path: Path, identities: Path | None = None) -> FaceSource:
    """Open images with identities, as for training.

    Args:
        path: a ``.rec`` file with its ``.idx``, a folder with ``train.rec``, or a folder with one for each identity.
        identities: a file of lines; of a folder the identities in it alone are taken.

    Raises:
        InputError: there is nothing of that kind, or identities are chosen of a RecordIO file.

    """
    record = path if path.suffix == ".rec" else path / "train.rec"
    if path.suffix != ".rec" and not record.is_file():
        return _folder(path, identities)
    if identities is not None:
        raise InputError(f"{identities} chooses identities by their folders, which {record} does not have")
    return RecordFile(record)


def _folder(root: Path, identities: Path | None) -> ImageFolder:
    if identities is None:
        return ImageFolder(root)
    return ImageFolder(root, [name for _, name in read_lines(identities, "the identities")])


@dataclass(frozen=True)
class ListedImages:
    """Images in files that a list names, each cut out by its landmarks where there are any.

    Attributes:
        root: folder that the names are paths in.
        names: of N images.
        landmarks: (N, 5, 2), as `align_face` takes them; None takes the pictures as they are.

    Raises:
        InputError: files are missing; the first ten are named.

    """

    root: Path
    names: Sequence[str]
    landmarks: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        missing = [name for name in self.names if not (self.root / name).is_file()]
        if missing:
            raise InputError(f"{len(missing)} of {len(self.names)} images are not in {self.root}: {listing(missing)}")

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return image i, (H, W, 3) uint8 in RGB."""
        image = read_image(self.root / self.names[i])
        return image if self.landmarks is None else align_face(image, self.landmarks[i], size=REFERENCE_SIZE)


TestImages = tuple[ImageSource, list[str]]  # images, and what they are called


def open_test_images(
    paths: Sequence[Path],
    *,
    names: Sequence[str] | None = None,
    identities: Path | None = None,
    media: Path | None = None,
    landmarks: Path | None = None,
) -> dict[str, TestImages]:
    """Open sets of images to embed.

    Args:
        paths: verification packs, and folders with a folder of images for each identity.
        names: what the sets are called; None takes the names of the packs, without their suffix, and folders.
        identities: a file of lines; of a folder the identities in it alone are taken.
        media: IJB's ``*_face_tid_mid.txt``; of a folder the images in it alone are taken, wherever they are there.
        landmarks: IJB's ``*_name_5pts_score.txt``, by which those are cut out.

    Returns:
        The images of each set and their names: paths in the folder, or as `FacePack` gives them.

    Raises:
        InputError: something is missing, or two sets have one name.

    """
    names = [path.stem if path.is_file() else path.name for path in paths] if names is None else names
    if len(names) != len(paths) or len(set(names)) < len(names):
        raise InputError(f"{len(paths)} sets of images need as many different names, found {listing(names)}; name them")
    if landmarks is not None and media is None:
        raise InputError("landmarks go with a list of media, which says of which images; give both")
    if identities is not None and media is not None:
        raise InputError("give identities or a list of media, found both")
    return {
        name: _open_pack(path) if path.is_file() else _open_folder(path, identities, media, landmarks)
        for name, path in zip(names, paths, strict=True)
    }


def _open_pack(path: Path) -> TestImages:
    pack = FacePack(path)
    return pack, pack.names


def _open_folder(root: Path, identities: Path | None, media: Path | None, landmarks: Path | None) -> TestImages:
    if media is not None:
        names, points = read_media(media, landmarks)
        return ListedImages(root, names, points), names
    folder = _folder(root, identities)
    return folder, folder.paths
