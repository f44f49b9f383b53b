"""What makes a RecordIO set of images: records, index, list and property."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wespeaker.data.faces.folder import ImageFolder, decode_image
from wespeaker.data.faces.recordio import HEADER, LENGTH_BITS, MAGIC, MAGIC_BYTES, MAX_EXACT, MAX_LENGTH, PART, Part
from wespeaker.data.manifest import read_lines
from wespeaker.errors import InputError
from wespeaker.files import replacing


class RecordSummary(NamedTuple):
    """What was written."""

    num_images: int
    num_identities: int
    height: int
    width: int


def pack_record(labels: Iterable[float], key: int, data: bytes) -> bytes:
    """Return the bytes of a record; one label goes in the header, several after it.

    Raises:
        InputError: labels and data take 512 MiB or more.

    """
    values = np.array([*labels], "<f4")
    if len(values) == 1:
        payload = HEADER.pack(0, values[0], key, 0) + data
    else:
        payload = HEADER.pack(len(values), 0.0, key, 0) + values.tobytes() + data
    if len(payload) > MAX_LENGTH:
        raise InputError(f"record {key} would have {len(payload)} bytes; RecordIO takes {MAX_LENGTH} at most")
    cuts = list(_aligned_magic(payload))
    parts = []
    for number, (begin, end) in enumerate(zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)], strict=True)):
        first, last = number == 0, number == len(cuts)
        flag = (Part.WHOLE if last else Part.FIRST) if first else (Part.LAST if last else Part.MIDDLE)
        parts += [PART.pack(MAGIC, flag << LENGTH_BITS | end - begin), payload[begin:end]]
    return b"".join(parts) + bytes(-len(payload) % 4)


def _aligned_magic(payload: bytes) -> Iterator[int]:
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            yield at
        at = payload.find(MAGIC_BYTES, at + 1)


def write_recordio(folder: Path, images: Iterable[tuple[bytes, int, str]]) -> RecordSummary:
    """Write ``train.rec``, ``train.idx``, ``train.lst`` and ``property`` as InsightFace's programs read them.

    Pictures are stored as they are, after they were decoded once to see that they can be. A set that is there stays
    until the new one is whole; then its index goes first, and the new one comes last.

    Args:
        folder: where to.
        images: (the encoded picture, identity, path for the list) of each; identities are 0, 0, …, 1, 1, … in order,
            all pictures of one size.

    Raises:
        InputError: identities are out of order; a picture cannot be decoded or has another size; there are none, or
            more than 16,777,215 (record 0 keeps their number plus one as float32).

    """
    starts: list[int] = []  # key of the first image of each identity
    key, height, width = 0, 0, 0
    with ExitStack() as stack:
        names = ("train.idx", "train.lst", "property", "train.rec")  # the last is put in its place first
        temporary = {name: stack.enter_context(replacing(folder / name)) for name in names}
        rec = stack.enter_context(open(temporary["train.rec"], "wb"))
        idx, lst, prop = (
            stack.enter_context(open(temporary[name], "w", encoding="utf-8", newline="\n")) for name in names[:3]
        )

        def write(key: int, labels: Iterable[float], data: bytes = b"") -> None:
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(pack_record(labels, key, data))

        write(0, (0, 0))  # its numbers are known at the end
        for key, (data, identity, path) in enumerate(images, 1):
            if identity != len(starts) - 1:
                if identity != len(starts):
                    raise InputError(
                        f"image {key} ({path}) is of identity {identity} after {len(starts) - 1}; "
                        "identities must come one after the other, numbered from 0"
                    )
                starts.append(key)
            shape = decode_image(data, path).shape[:2]
            if key == 1:
                height, width = shape
            elif shape != (height, width):
                raise InputError(
                    f"{path} has {shape[1]} x {shape[0]} pixels, the first image {width} x {height}; "
                    "all must have one size, align or resize them first"
                )
            write(key, (identity,), data)
            lst.write(f"{key}\t{identity}\t{path}\n")
        end = key + 1 + len(starts)
        if key == 0 or end > MAX_EXACT:
            raise InputError(f"{folder}: there are {key} images of {len(starts)} identities; a set has 1 to 16 million")
        for number, (first, after) in enumerate(zip(starts, [*starts[1:], key + 1], strict=True)):
            write(key + 1 + number, (first, after))
        rec.seek(0)
        rec.write(pack_record((key + 1, end), 0, b""))
        prop.write(f"{len(starts)},{height},{width}\n")
        (folder / "train.idx").unlink(missing_ok=True)
    return RecordSummary(key, len(starts), height, width)


def folder_images(root: Path) -> Iterator[tuple[bytes, int, str]]:
    """Yield what `write_recordio` takes from a folder with a folder of pictures for each identity.

    Raises:
        InputError: as `ImageFolder` does.

    """
    images = ImageFolder(root)
    last, identity = "", -1
    for i, path in enumerate(images.paths):
        identity += images.identity(i) != last
        last = images.identity(i)
        yield (root / path).read_bytes(), identity, path


def list_images(path: Path, root: Path) -> Iterator[tuple[bytes, int, str]]:
    """Yield what `write_recordio` takes from a ``.lst``: ``key label path`` lines with tabs between.

    Paths are relative to ``root``. Images come sorted by label; `write_recordio` refuses labels that leave out numbers.

    Raises:
        InputError: with file and line, for a line of another format or a picture that is not there.

    """
    entries = []
    for where, text in read_lines(path, "the list of images"):
        try:
            _, label, name = text.split("\t")
            entries.append((int(float(label)), name, where))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: expected 'key label path' with tabs between, found {text[:80]!r}") from None
    for identity, name, where in sorted(entries, key=lambda entry: entry[0]):
        try:
            data = (root / name).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {root / name} cannot be read ({error.strerror}); correct the list") from None
        yield data, identity, name
