"""Training examples of faces: a function of seed, epoch and index; bad images are replaced and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from wespeaker.data.faces.dataset import FaceBatch, FaceSet, FaceSource, FittedImages, collate, normalised
from wespeaker.data.faces.folder import ImageFolder
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError

FACES = RenderedFaces(num_identities=5, num_images=4, size=16, seed=3)


def batches(dataset: FaceSet, *, start_step: int = 0, num_workers: int = 0) -> list[FaceBatch]:
    sampler = RunSampler(len(dataset), batch_size=6, num_epochs=2, seed=1, start_step=start_step)
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers))


def assert_same(found: list[FaceBatch], expected: list[FaceBatch]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.keys, a.bad) == (b.keys, b.bad)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    dataset = FaceSet(FACES, size=16, seed=7)
    one = batches(dataset)
    assert len(one) == 8
    assert_same(batches(dataset, num_workers=2), one)
    assert_same(batches(dataset, start_step=5), one[5:])


def test_half_of_the_images_are_mirrored_anew_in_each_epoch() -> None:
    dataset = FaceSet(FACES, size=16, seed=7)
    mirrored = np.zeros((40, len(dataset)), dtype=bool)
    for index in range(len(dataset)):
        plain = normalised(FACES.image(index))
        for epoch in range(40):
            image = dataset[epoch, index].image
            mirrored[epoch, index] = np.array_equal(image, plain[:, :, ::-1])
            assert mirrored[epoch, index] or np.array_equal(image, plain)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.05)
    assert len({tuple(row) for row in mirrored}) == 40
    other = FaceSet(FACES, size=16, seed=8)
    assert any(not np.array_equal(other[1, i].image, dataset[1, i].image) for i in range(len(dataset)))


def test_examples_are_in_the_range_that_networks_take() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = normalised(np.stack([ramp, ramp.T, ramp], axis=2))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 16, 16)
    np.testing.assert_allclose(pixels[0].ravel(), np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(pixels[1], pixels[0].T)


def test_fitted_images_have_one_shape() -> None:
    grey = FittedImages(RenderedFaces(2, 2, size=20, seed=3), size=10, channels=1)
    assert len(grey) == 4
    assert grey.image(3).shape == (10, 10, 1)
    assert np.array_equal(FittedImages(FACES, size=16).image(3), FACES.image(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_has_inputs_and_labels(channels: int) -> None:
    dataset = FaceSet(FACES, size=12, channels=channels, seed=0)
    batch = collate([dataset[1, i] for i in (0, 5, 19)])
    assert isinstance(batch, FaceBatch)
    (images,) = batch.inputs
    assert images.shape == (3, channels, 12, 12)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert batch.labels.tolist() == [0, 1, 4]
    assert batch.labels.dtype == torch.int64
    assert batch.keys == ["0/0", "1/5", "4/19"]
    assert batch.bad == []
    assert batch.to(torch.device("meta")).images.device.type == "meta"


class Numbered:
    """Identities as a RecordIO file has them, not in order and with gaps."""

    def __init__(self, *identities: int) -> None:
        self.identities = identities

    def __len__(self) -> int:
        return len(self.identities)

    def identity(self, i: int) -> int:
        return self.identities[i]

    def image(self, i: int) -> NDArray[np.uint8]:
        return np.full((8, 8, 3), i, dtype=np.uint8)


def test_classes_are_the_sorted_identities() -> None:
    source: FaceSource = Numbered(10, 9, 9, 200)
    dataset = FaceSet(source, size=8, seed=0)
    assert dataset.class_names == ["9", "10", "200"]  # by number, not by text
    assert dataset.labels.tolist() == [1, 0, 0, 2]
    assert dataset.num_classes == 3


def test_what_cannot_be_trained_with_is_a_sentence() -> None:
    with pytest.raises(InputError, match="at least two identities, there are 1"):
        FaceSet(Numbered(4, 4), size=8, seed=0)
    with pytest.raises(InputError, match="channels must be 1"):
        FaceSet(FACES, size=8, channels=4, seed=0)


def write_folder(root: Path) -> ImageFolder:
    for i in range(len(FACES)):
        path = root / f"id{FACES.identity(i)}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FACES.image(i)).save(path)
    return ImageFolder(root)


def test_files_give_the_same_examples_as_what_they_were_written_from(tmp_path: Path) -> None:
    from_files, rendered = FaceSet(write_folder(tmp_path), size=16, seed=7), FaceSet(FACES, size=16, seed=7)
    assert from_files.class_names == [f"id{i}" for i in range(5)]
    for a, b in zip(batches(from_files), batches(rendered), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_used_is_replaced_and_named(tmp_path: Path, num_workers: int) -> None:
    dataset = FaceSet(write_folder(tmp_path), size=16, seed=7)
    (tmp_path / "id1" / "06.png").write_bytes(b"broken")
    (tmp_path / "id4" / "17.png").unlink()
    found = batches(dataset, num_workers=num_workers)
    assert [len(batch.keys) for batch in found] == [len(batch.keys) for batch in batches(dataset)]
    keys = [key for batch in found for key in batch.keys]
    assert len(keys) == 40
    assert not {"id1/6", "id4/17"} & set(keys)
    bad = dict(pair for batch in found for pair in batch.bad)
    assert set(bad) == {"id1/6", "id4/17"}
    assert "06.png is no picture" in bad["id1/6"]
    assert "17.png cannot be read" in bad["id4/17"]
    assert_same(batches(dataset), found)


def test_images_none_of_which_can_be_read_are_one_sentence(tmp_path: Path) -> None:
    dataset = FaceSet(write_folder(tmp_path), size=16, seed=7)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    found = batches(dataset)
    assert all(isinstance(batch, InputError) for batch in found)
    assert str(found[0]).startswith("10 images in a row cannot be used for training; the last: ")
