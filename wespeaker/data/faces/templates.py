"""Template verification as of IJB-B and IJB-C: which images make up which template, and the pairs to compare.

``NAME_face_tid_mid.txt`` has lines of image, template and medium (a still, or the frames of one video),
``NAME_template_pair_label.txt`` of two templates and 1 (same person) or 0, ``NAME_name_5pts_score.txt`` of image, five
landmarks as x and y, and the score of the face detector.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.columns import read_named_numbers, read_numbers
from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines

logger = logging.getLogger(__name__)

_IMAGES = ("image", "template", "medium")
_PAIRS = ("template1", "template2", "1|0")
_LANDMARKS = ("image", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy"), "score")
_BLOCK = 1 << 20  # pairs that are looked up at a time


@dataclass(frozen=True, eq=False)
class Templates:
    """I images in T templates, and N pairs of templates.

    Attributes:
        images: (I,) names, unique, in the order of the file.
        template: (I,) int32, position in ``template_ids`` of the template each image is in.
        media: (I,) int32, numbers as in the file: images of one template and one number are of one medium.
        template_ids: (T,) int32, numbers as in the file, ascending.
        pairs: (N, 2) int32, positions in ``template_ids``.
        labels: (N,) bool, whether a pair is of one person.
        landmarks: (I, 5, 2) float32, x and y in pixels; None without such a file.
        detector_scores: (I,) float32; None without such a file.

    """

    images: Sequence[str]
    template: NDArray[np.int32]
    media: NDArray[np.int32]
    template_ids: NDArray[np.int32]
    pairs: NDArray[np.int32]
    labels: NDArray[np.bool_]
    landmarks: NDArray[np.float32] | None = None
    detector_scores: NDArray[np.float32] | None = None


def read_templates(images: Path, pairs: Path, landmarks: Path | None = None) -> Templates:
    """Read the two or three files of a protocol.

    Pairs that come twice are kept, as published lists are scored as they are, and their number is logged.

    Args:
        images: ``*_face_tid_mid.txt``.
        pairs: ``*_template_pair_label.txt``.
        landmarks: ``*_name_5pts_score.txt``, with a line for each image, in any order.

    Raises:
        InputError: with file and line, for a line of another format or a pair of a template without images; for an
            image that comes twice or has no landmarks, a pair with both labels.

    """
    names, numbers = read_named_numbers(images, "the images of the templates", columns=_IMAGES, dtype=np.int32)
    template_ids, template = np.unique(numbers[:, 0], return_inverse=True)
    positions, labels = _read_pairs(pairs, template_ids, images)
    points = scores = None
    if landmarks is not None:
        points, scores = _read_landmarks(landmarks, names, images)
    return Templates(
        images=names,
        template=template.reshape(-1).astype(np.int32),
        media=numbers[:, 1].copy(),
        template_ids=template_ids,
        pairs=positions,
        labels=labels,
        landmarks=points,
        detector_scores=scores,
    )


def read_media(images: Path, landmarks: Path | None = None) -> tuple[list[str], NDArray[np.float32] | None]:
    """Read which images a protocol has, without its pairs.

    Returns:
        The I names in the order of the file, and their landmarks, (I, 5, 2) float32; None without such a file.

    Raises:
        InputError: as `read_templates` does.

    """
    names, _ = read_named_numbers(images, "the images of the templates", columns=_IMAGES, dtype=np.int32)
    return names, None if landmarks is None else _read_landmarks(landmarks, names, images)[0]


def write_templates(templates: Templates, images: Path, pairs: Path, landmarks: Path | None = None) -> None:
    """Write what `read_templates` reads; landmarks and scores with the digits that give back the same float32.

    Raises:
        ValueError: a file of landmarks is wanted of templates that have none.

    """
    ids = templates.template_ids
    rows = zip(templates.images, ids[templates.template].tolist(), templates.media.tolist(), strict=True)
    write_lines(images, (f"{name} {template} {medium}" for name, template, medium in rows))
    columns = zip(*ids[templates.pairs].T.tolist(), templates.labels.tolist(), strict=True)
    write_lines(pairs, (f"{first} {second} {label:d}" for first, second, label in columns))
    if landmarks is None:
        return
    if templates.landmarks is None or templates.detector_scores is None:
        raise ValueError("these templates have no landmarks and scores to write")
    values = np.column_stack([templates.landmarks.reshape(-1, 10), templates.detector_scores])
    write_lines(
        landmarks,
        (f"{name} {' '.join(map(str, row))}" for name, row in zip(templates.images, values, strict=True)),
    )


def _read_pairs(
    path: Path, template_ids: NDArray[np.int32], images: Path
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    rows = read_numbers(path, "the pairs of templates", columns=_PAIRS, dtype=np.int32)
    positions = np.empty((len(rows), 2), np.int32)
    for start in range(0, len(rows), _BLOCK):
        ids = rows[start : start + _BLOCK, :2]
        found = np.minimum(np.searchsorted(template_ids, ids), len(template_ids) - 1)
        unknown = np.flatnonzero((template_ids[found] != ids).any(axis=1))
        if unknown.size:
            row = start + int(unknown[0])
            odd = next(number for number in rows[row, :2].tolist() if number not in template_ids)
            raise InputError(f"{path}:{_line_of(path, row)}: template {odd} has no image in {images}")
        positions[start : start + _BLOCK] = found
    labels = rows[:, 2] == 1
    wrong = np.flatnonzero(~labels & (rows[:, 2] != 0))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(f"{path}:{_line_of(path, row)}: the label must be 1 (same person) or 0, found {rows[row, 2]}")
    del rows  # a third of the memory
    _check_repeats(path, positions, labels, template_ids)
    return positions, labels


def _line_of(path: Path, row: int) -> int:
    """Return the number of the line, from 1, that holds row ``row``, from 0, of those that are not blank."""
    with open(path, encoding="utf-8") as file:
        numbers = (number for number, line in enumerate(file, 1) if line.strip())
        return next(number for index, number in enumerate(numbers) if index == row)


def _check_repeats(
    path: Path, positions: NDArray[np.int32], labels: NDArray[np.bool_], template_ids: NDArray[np.int32]
) -> None:
    """Log how many pairs come again; refuse one that has both labels."""
    keys = positions[:, 0].astype(np.int64)
    keys *= 2 * len(template_ids)
    keys += 2 * positions[:, 1]
    keys += labels
    keys.sort()
    change = keys[1:] ^ keys[:-1]  # 0: the same pair and label; 1: the same pair, another label
    both = np.flatnonzero(change == 1)
    if both.size:
        first, second = divmod(int(keys[both[0]]) >> 1, len(template_ids))
        raise InputError(
            f"{path} gives templates {template_ids[first]} and {template_ids[second]} both as 1 and as 0 "
            f"({both.size} such pairs); one of the labels is wrong"
        )
    if repeated := len(change) - int(np.count_nonzero(change)):
        logger.warning("%s: %d of %d pairs repeat an earlier one; each is counted", path, repeated, len(positions))


def _read_landmarks(path: Path, names: Sequence[str], images: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    found, values = read_named_numbers(path, "the landmarks", columns=_LANDMARKS, dtype=np.float32)
    if found != names:
        row_of = {name: row for row, name in enumerate(found)}
        missing = [name for name in names if name not in row_of]
        if missing:
            raise InputError(f"{path} has no line for {len(missing)} images of {images}: {listing(missing)}")
        values = values[[row_of[name] for name in names]]
    return values[:, :10].reshape(-1, 5, 2), values[:, 10].copy()
