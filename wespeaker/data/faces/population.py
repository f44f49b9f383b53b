"""Rendered faces as a source of training examples: as many persons as are wanted, and no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.render import render_face


@dataclass(frozen=True)
class RenderedFaces:
    """Images 0, 1, … of persons ``first``, ``first`` + 1, … of a population, rendered when they are asked for.

    Attributes:
        num_identities: persons.
        num_images: of each person.
        size: height and width in pixels.
        seed: of the population.
        first: number of the first person; populations of one seed share their persons.

    """

    num_identities: int
    num_images: int
    size: int
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return self.num_identities * self.num_images

    def identity(self, i: int) -> int:
        """Return the number of the person on image i."""
        return self.first + i // self.num_images

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return image i, (size, size, 3) uint8 in RGB."""
        return render_face(self.seed, self.identity(i), i % self.num_images, self.size).image
