"""Folders of pictures: what is listed, what is refused, and what pixels come out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wespeaker.data.faces.folder import SUFFIXES, ImageFolder, decode_image, read_image, square, to_grey
from wespeaker.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 16, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def encoded(pixels: np.ndarray = PIXELS, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


def test_pictures_are_listed_by_identity_and_path(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a/z.pgm", "a/deep/1.webp", "c/x.bmp"):
        write(tmp_path / name, PIXELS if not name.endswith("pgm") else PIXELS[..., 0])
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no picture")
    folder = ImageFolder(tmp_path)
    assert folder.paths == ["a/deep/1.webp", "a/z.pgm", "b/10.JPG", "b/2.png", "c/x.bmp"]
    assert [folder.identity(i) for i in range(len(folder))] == ["a", "a", "b", "b", "c"]
    assert np.array_equal(folder.image(3), PIXELS)
    assert ImageFolder(tmp_path, ["c", "a"]).paths == ["a/deep/1.webp", "a/z.pgm", "c/x.bmp"]


def test_folders_that_cannot_be_used_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone \(folder of images\) is not a folder"):
        ImageFolder(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no pictures .* expected them as .*IDENTITY"):
        ImageFolder(tmp_path)
    write(tmp_path / "a" / "1.png")
    with pytest.raises(InputError, match="no folder for the identities s1"):
        ImageFolder(tmp_path, ["a", "s1"])
    write(tmp_path / "stray.png")
    with pytest.raises(InputError, match=r"stray\.png must be in the folder of an identity"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_decoded_to_rgb(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", PIXELS[..., 0] if suffix == ".pgm" else PIXELS)
    image = read_image(path)
    assert image.shape == (20, 16, 3)
    assert image.dtype == np.uint8
    if suffix in (".png", ".ppm", ".bmp"):
        assert np.array_equal(image, PIXELS)
    if suffix == ".pgm":
        assert np.array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera lay on its side
    turned = decode_image(encoded(np.ascontiguousarray(np.rot90(PIXELS)), exif=exif), "x")
    assert np.array_equal(turned, PIXELS)


def test_pictures_that_cannot_be_decoded_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png cannot be read \(No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="x is no picture of the formats PNG, JPEG"):
        decode_image(b"RIFF", "x")
    with pytest.raises(InputError, match="x is no picture of the formats"):
        decode_image(encoded(kind="GIF"), "x")  # Pillow can, but is not asked to
    for kind in ("PNG", "JPEG", "BMP", "PPM"):
        with pytest.raises(InputError, match="x cannot be decoded"):
            decode_image(encoded(kind=kind)[:-200], "x")
    with pytest.raises(InputError, match="more than 8 bits a pixel"):
        decode_image(encoded(np.full((4, 4), 1000, dtype=np.uint16)), "x")
    with pytest.raises(InputError, match="70000000 x 1 pixels, more than"):
        decode_image(b"P5\n70000000 1\n255\n", "x")


def reason(data: bytes) -> str:
    try:
        decode_image(data, "x")
    except InputError as error:
        return str(error)
    return "x is a picture"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "PPM"])
def test_no_damage_to_a_file_is_more_than_a_sentence(kind: str) -> None:
    whole = encoded(kind=kind)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in RNG.integers(0, len(damaged) // 4, 3):
            damaged[place] = RNG.integers(256)
        assert re.fullmatch("x .*", reason(bytes(damaged)))


def test_the_middle_square_is_averaged_over_areas() -> None:
    image = RNG.integers(0, 256, (112, 92, 3), dtype=np.uint8)
    areas = image[10:102].reshape(46, 2, 46, 2, 3).mean(axis=(1, 3))
    assert np.abs(square(image, 46) - areas).max() <= 1
    assert np.array_equal(square(image, 92), image[10:102])
    assert np.array_equal(square(image.transpose(1, 0, 2), 92), image[10:102].transpose(1, 0, 2))
    assert square(image, 120).shape == (120, 120, 3)


def test_grey_is_the_luma_of_bt_601() -> None:
    assert np.abs(to_grey(PIXELS)[..., 0] - PIXELS @ np.array([0.299, 0.587, 0.114])).max() <= 1
    assert np.array_equal(to_grey(np.repeat(PIXELS[..., :1], 3, axis=2)), PIXELS[..., :1])
