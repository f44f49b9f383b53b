"""Embeddings of aligned face images and their mirror images: deterministic, failures listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from wespeaker.data.faces.dataset import FittedImages, ImageSource, normalised
from wespeaker.errors import InputError, listing
from wespeaker.progress import progress

Flip = Literal["sum", "concat", "none"]


@torch.inference_mode()
def embed_images(
    model: nn.Module,
    images: ImageSource,
    *,
    flip: Flip = "sum",
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    desc: str = "embeddings",
) -> NDArray[np.float32]:
    """Return the embeddings of all images, in their order.

    With ``flip`` an embedding is made of those of an image, f(x), and of its mirror image, f(x'), neither of them
    length normalised: ``sum`` gives f(x) + f(x'), as ArcFace evaluates; ``concat`` both, side by side, 2 D numbers, as
    SphereFace and CosFace; ``none`` f(x) alone, in half the time.

    Args:
        model: in evaluation mode, with the (C, H, W) it takes as ``image_shape``, to which images are fitted as for
            training, see `FittedImages`; its device is where the work is done.
        images: I images.
        flip: see above.
        names: (I,), what an error calls the images; None numbers them from 0.
        batch_size: images in one forward pass; mirror images go in another.
        num_workers: processes that read images.
        desc: what the progress bar says.

    Returns:
        (I, D) or (I, 2 D) float32.

    Raises:
        ValueError: the model is in training mode, in which an embedding would depend on its neighbours.
        InputError: at the end, with the images that cannot be read or give a non-finite embedding; at once if there
            are none.

    """
    if model.training:
        raise ValueError("the model must be in evaluation mode; call model.eval() first")
    if not len(images):
        raise InputError("there are no images to embed")
    device = next(model.parameters()).device
    image_shape = model.image_shape
    assert isinstance(image_shape, tuple)
    channels, size, _ = image_shape
    dataset = _Images(FittedImages(images, size, channels), names)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_collate)
    parts: list[NDArray[np.float32]] = []
    failed: list[str] = []
    with progress(loader, desc=desc, total=len(loader)) as bar:
        for batch, rows, errors in bar:
            failed += [str(error) for error in errors]
            if batch is None:
                continue
            embeddings = _embed(model, batch.to(device), flip).cpu().numpy()
            finite = np.isfinite(embeddings).all(axis=1)
            failed += [f"{dataset.name(rows[i])} has an embedding that is not finite" for i in np.flatnonzero(~finite)]
            parts.append(embeddings)
    if failed:
        raise InputError(f"{len(failed)} of {len(images)} images have no embedding: {listing(failed)}")
    return np.concatenate(parts)


def _embed(model: nn.Module, batch: torch.Tensor, flip: Flip) -> torch.Tensor:
    plain: torch.Tensor = model(batch).float()
    if flip == "none":
        return plain
    mirrored = model(batch.flip(3)).float()
    return plain + mirrored if flip == "sum" else torch.cat((plain, mirrored), dim=1)


class _Images(Dataset[tuple[int, torch.Tensor] | InputError]):
    def __init__(self, images: FittedImages, names: Sequence[str] | None) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"image {index}" if self.names is None else self.names[index]

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor] | InputError:
        try:
            return index, torch.from_numpy(normalised(self.images.image(index)))
        except InputError as error:
            return error


def _collate(
    items: Sequence[tuple[int, torch.Tensor] | InputError],
) -> tuple[torch.Tensor | None, list[int], list[InputError]]:
    good = [item for item in items if not isinstance(item, InputError)]
    batch = torch.stack([image for _, image in good]) if good else None
    return batch, [index for index, _ in good], [item for item in items if isinstance(item, InputError)]
