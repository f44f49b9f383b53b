"""Painting shapes with smooth edges, so that a shape may be thinner than a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.floating]  # (size, size) float32, what part of each pixel is covered


def cover(distance: Mask, width: float) -> Mask:
    """Return the cover of a shape: a ramp of ``width`` around where the distance to its edge, positive inside, is 0."""
    return np.asarray(np.clip(distance * (1 / width) + 0.5, 0, 1))


def ellipse(x: Mask, y: Mask, half_width: float, half_height: float) -> Mask:
    """Return about the distance to the edge of an ellipse around the origin, positive inside."""
    x, y = x * (1 / half_width), y * (1 / half_height)
    return np.asarray((1 - np.sqrt(x * x + y * y)) * min(half_width, half_height))


def lens(x: Mask, y: Mask, half_width: float, half_height: float) -> Mask:
    """Return about the distance to the edge of an almond between two parabolas, positive inside."""
    x = x * (1 / half_width)
    return np.asarray(half_height * (1 - x * x) - np.abs(y))


class Canvas:
    """An image under work.

    Attributes:
        pixels: (3, size, size) float32; 1 is white, and there may be more until it is exposed.

    """

    def __init__(self, size: int) -> None:
        self.pixels: NDArray[np.float32] = np.zeros((3, size, size), dtype=np.float32)

    def paint(self, mask: Mask, colour: Sequence[float] | NDArray[np.floating]) -> None:
        """Lay a colour, (3,) or (3, size, size), over the image where the mask says so."""
        paint = np.asarray(colour, dtype=np.float32)
        if paint.ndim == 1:
            paint = paint[:, None, None]
        self.pixels += mask * (paint - self.pixels)

    def shade(self, mask: Mask, factor: float) -> None:
        """Multiply the image with ``factor`` where the mask says so."""
        self.pixels *= 1 - (1 - factor) * mask
