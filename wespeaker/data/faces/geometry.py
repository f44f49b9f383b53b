"""A head in front of a camera: which point of it each pixel shows, and where a point of it is seen.

The head is an ellipsoid seen by parallel projection and then narrowed towards chin and top, so both directions have
a closed form. Image coordinates are in [-1, 1] with x to the right and y down; z points to the camera.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.identity import Identity
from wespeaker.data.faces.nuisance import Nuisance

Pixels = NDArray[np.floating]  # (size, size), float32
CENTRE_Y = -0.06  # of the head in the image, so that there is room for chin and shoulders


class View(NamedTuple):
    """What each pixel shows; lengths are the head's, in halves of the image at scale 1."""

    x: Pixels  # in the image plane, upright and centred on the head
    y: Pixels
    u: Pixels  # on the head's surface: to its side,
    v: Pixels  # down,
    normals: NDArray[np.floating]  # (3, size, size), of the surface, in the camera's frame
    inside: Pixels  # distance from the head's outline, positive inside
    pixel: float  # width of a pixel


def rotation(nuisance: Nuisance) -> NDArray[np.float64]:
    """Return the (3, 3) matrix from the head's frame to the camera's: yaw, then pitch."""
    c, s = math.cos(nuisance.yaw), math.sin(nuisance.yaw)
    turned = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = math.cos(nuisance.pitch), math.sin(nuisance.pitch)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ turned


def view(person: Identity, nuisance: Nuisance, size: int) -> View:
    """Intersect the line of sight of each pixel with the head.

    With the head scaled to a unit sphere, the line through o along e meets it where ``|o + t e| = 1``, so
    ``t = (-o.e + sqrt(d)) / e.e`` with ``d = (o.e)^2 - (e.e) (o.o - 1)``. Where ``d < 0`` the line passes by; its
    nearest point is taken, as the neighbourhood of the outline is still painted with a part of a pixel.
    """
    image_x, image_y = _grid(size)
    c, s = math.cos(nuisance.roll) / nuisance.scale, math.sin(nuisance.roll) / nuisance.scale
    image_x, image_y = image_x - nuisance.shift_x, image_y - (CENTRE_Y + nuisance.shift_y)
    x, y = c * image_x + s * image_y, c * image_y - s * image_x
    narrow_x = x / _taper(person, y)

    matrix = rotation(nuisance)
    axes = np.array([person.half_width, person.half_height, person.depth])
    (ax, bx, ex), (ay, by, ey), (az, bz, ez) = (matrix.T / axes[:, None]).tolist()
    ox, oy, oz = ax * narrow_x + bx * y, ay * narrow_x + by * y, az * narrow_x + bz * y
    along, length = ox * ex + oy * ey + oz * ez, ex * ex + ey * ey + ez * ez
    squared = (along * along - length * (ox * ox + oy * oy + oz * oz - 1)) / length
    t = (np.sqrt(np.maximum(squared * length, 0)) - along) / length
    sphere = np.stack([ox + t * ex, oy + t * ey, oz + t * ez])  # on the unit sphere, in the head's frame

    normals = sphere / axes.astype(np.float32)[:, None, None]
    normals /= np.sqrt((normals * normals).sum(axis=0))
    # Seen from the front, `squared` is 1 - r^2, with r the distance from the centre in half-axes.
    inside = (1 - np.sqrt(np.maximum(1 - squared, 0))) * min(person.half_width, person.half_height)
    return View(
        x, y, sphere[0] * person.half_width, sphere[1] * person.half_height,
        np.einsum("ij,jhw->ihw", matrix.astype(np.float32), normals),
        inside, 2 / (size * nuisance.scale),
    )  # fmt: skip


def surface(person: Identity, u: float, v: float, *, above: float = 0.0) -> tuple[float, float, float]:
    """Return the point of the head's front at (u, v), or ``above`` it towards where the head looks."""
    height = 1 - (u / person.half_width) ** 2 - (v / person.half_height) ** 2
    return u, v, person.depth * math.sqrt(max(height, 0.0)) + above


def project(person: Identity, nuisance: Nuisance, point: tuple[float, float, float]) -> tuple[float, float]:
    """Return where in the upright image plane a point of the head is seen: ``View.x`` and ``View.y`` there."""
    x, y, _ = (rotation(nuisance) @ point).tolist()
    return x * float(_taper(person, np.array([y], dtype=np.float32))[0]), y


def to_pixels(nuisance: Nuisance, points: list[tuple[float, float]], size: int) -> NDArray[np.float64]:
    """Return (N, 2) pixel coordinates of N points of the upright image plane; (0, 0) is the first pixel's centre."""
    c, s = math.cos(nuisance.roll) * nuisance.scale, math.sin(nuisance.roll) * nuisance.scale
    turned = np.array(points) @ np.array([[c, s], [-s, c]])
    centre = (nuisance.shift_x, CENTRE_Y + nuisance.shift_y)
    return (turned + centre + 1) * (size / 2) - 0.5


def _taper(person: Identity, y: Pixels) -> Pixels:
    """Return the factor on the head's width at a height."""
    share = y / person.half_height
    narrowing = np.where(share > 0, np.float32(person.jaw), np.float32(person.forehead))
    return np.asarray(1 - narrowing * np.minimum(share * share, 1))


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Return the image coordinates of the pixels' centres."""
    centres = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(centres, centres)
    return x, y
