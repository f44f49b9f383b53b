"""Schematic faces of unlimited many persons, as a function of (seed, identity, image).

They are a stand-in where no photographs may be used: error rates on them show that a pipeline learns and ranks, and
say nothing about photographs. Of 100 unseen persons (8 images of 48 x 48 each), raw pixels have an equal error rate of
30 %, and a linear discriminant trained on 12 images of each of 200 others one of 11 %.

The same arguments give the same image in any order and process; across processors a pixel may differ by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wespeaker.data.faces.canvas import Canvas, Mask, cover, ellipse, lens
from wespeaker.data.faces.geometry import View, project, surface, to_pixels, view
from wespeaker.data.faces.identity import Colour, Identity, draw_identity
from wespeaker.data.faces.nuisance import Nuisance, draw_nuisance
from wespeaker.data.randomness import generator

SMILE_LIFT = 0.035  # of the corners of the mouth, at a smile of 1
SIDES = (-1, 1)  # the left and the right of the image
DARK: Colour = (0.03, 0.03, 0.03)


class RenderedFace(NamedTuple):
    """A face and where its five landmarks are."""

    image: NDArray[np.uint8]  # (size, size, 3), RGB
    landmarks: NDArray[np.float64]  # (5, 2) x and y in pixels: eyes, tip of the nose, corners of the mouth; left first


def render_face(seed: int, identity: int, k: int, size: int = 112) -> RenderedFace:
    """Return image ``k`` of a person.

    Args:
        seed: of the population.
        identity: number of the person, 0 or more.
        k: number of the image, 0 or more.
        size: height and width in pixels.

    Returns:
        The image, and its landmarks in the order of ArcFace's alignment template, those hidden by the pose included;
        the centre of the first pixel is (0, 0).

    """
    person, nuisance = draw_identity(seed, identity), draw_nuisance(seed, identity, k)
    face = _Face(person, nuisance, size)
    for layer in LAYERS:
        layer(face)
    noise = generator(seed, "noise", identity, k).standard_normal((3, size, size), dtype=np.float32)
    return RenderedFace(_exposed(face.canvas, nuisance, noise), to_pixels(nuisance, face.landmarks(), size))


class _Face:
    """A person at a moment, in front of a camera."""

    def __init__(self, person: Identity, nuisance: Nuisance, size: int) -> None:
        self.person, self.nuisance = person, nuisance
        self.canvas = Canvas(size)
        self.seen: View = view(person, nuisance, size)
        self.edge = 1.2 * self.seen.pixel  # a little more than a pixel, as a lens has it
        self.head: Mask = cover(self.seen.inside, self.edge)
        self.light: Mask = self._light()

    def _light(self) -> Mask:
        """Return Lambert's law: what part of the light each point of the head receives."""
        direction = np.array([self.nuisance.light_x, self.nuisance.light_y, 1.0])
        direction /= np.linalg.norm(direction)
        x, y, z = direction.tolist()
        facing = self.seen.normals[0] * x + self.seen.normals[1] * y + self.seen.normals[2] * z
        return np.asarray(self.nuisance.ambient + (1.1 - self.nuisance.ambient) * np.maximum(facing, 0))

    def lit(self, colour: Colour) -> NDArray[np.floating]:
        """Return (3, size, size), a colour as it looks in this light."""
        return np.asarray(colour, dtype=np.float32)[:, None, None] * self.light

    def on_head(self, distance: Mask, softness: float = 0.0) -> Mask:
        """Return the cover of a shape that ends with the head."""
        return cover(distance, max(self.edge, softness)) * self.head

    @property
    def mouth_centre(self) -> float:
        """The line of the lips."""
        return self.person.mouth_v + 0.5 * self.nuisance.mouth_open

    @property
    def corner_lift(self) -> float:
        """By how much the corners of the mouth are above its centre."""
        return self.person.mouth_curve + SMILE_LIFT * self.nuisance.smile

    def nose(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return where the bridge and the tip of the nose are seen."""
        person = self.person
        points = surface(person, 0, person.eye_v), surface(person, 0, person.nose_v, above=person.nose_depth)
        return project(person, self.nuisance, points[0]), project(person, self.nuisance, points[1])

    def landmarks(self) -> list[tuple[float, float]]:
        """Return where the five landmarks are seen in the upright image plane."""
        person = self.person
        eyes = [surface(person, side * person.eye_u, person.eye_v) for side in SIDES]
        corner = self.mouth_centre - self.corner_lift
        corners = [surface(person, side * person.mouth_width, corner) for side in SIDES]
        left_eye, right_eye, left_corner, right_corner = (project(person, self.nuisance, p) for p in eyes + corners)
        return [left_eye, right_eye, self.nose()[1], left_corner, right_corner]


def _background(face: _Face) -> None:
    """Two tones from left to right, so that the outline has no one contrast."""
    nuisance, x = face.nuisance, face.seen.x
    face.canvas.paint(np.ones_like(x), nuisance.background)
    face.canvas.paint(cover(x, 1.6), nuisance.second_background)


def _hair_behind(face: _Face) -> None:
    person, x, y = face.person, face.seen.x, face.seen.y
    volume = 1 + person.hair_volume
    if person.hairline > -0.9:  # else bald
        outline = ellipse(x, y + 0.05, person.half_width * volume, person.half_height * (0.6 + 0.4 * volume) + 0.04)
        long = np.minimum(person.half_width * volume - np.abs(x), y + 0.1)  # falls straight below the ears
        distance = np.minimum(np.maximum(outline, long), person.hair_length - y)
        face.canvas.paint(cover(distance, 0.04), _toned(person.hair, 0.75))


def _shoulders(face: _Face) -> None:
    person, x, y = face.person, face.seen.x, face.seen.y
    neck = np.minimum(0.7 * person.half_width - np.abs(x), y - 0.3)
    face.canvas.paint(cover(neck, 0.06), _toned(person.skin, 0.6 * (0.5 + face.nuisance.ambient)))
    body = ellipse(x, y - person.half_height - 0.72, 1.25, 0.55)
    face.canvas.paint(cover(body, face.edge), face.nuisance.clothes)


def _ears(face: _Face) -> None:
    person, x, y = face.person, face.seen.x, face.seen.y
    for side in SIDES:
        # An ear sits at the side of the head, so it turns from sight with it.
        ear_x, ear_y = project(person, face.nuisance, (side * person.half_width * 1.01, person.eye_v + 0.1, -0.1))
        shape = ellipse(x - ear_x, y - ear_y, 0.5 * person.ears, person.ears)
        face.canvas.paint(cover(shape, face.edge), face.lit(_toned(person.skin, 0.88)))


def _skin(face: _Face) -> None:
    person, seen = face.person, face.seen
    texture = np.zeros_like(seen.u)
    for along_u, along_v, phase, weight in person.waves:
        texture += weight * np.cos(along_u * seen.u + along_v * seen.v + phase)
    face.canvas.paint(face.head, face.lit(person.skin) * (1 + texture))


def _moles(face: _Face) -> None:
    for u, v, radius, darkness in face.person.moles:
        spot = ellipse(face.seen.u - u, face.seen.v - v, radius, radius)
        face.canvas.shade(face.on_head(spot, radius), 1 - darkness)


def _eyes(face: _Face) -> None:
    person, nuisance, seen = face.person, face.nuisance, face.seen
    height = person.eye_height * nuisance.eyelids
    for side in SIDES:
        u, v = seen.u - side * person.eye_u, seen.v - person.eye_v
        v_tilted = v + side * person.eye_tilt * u
        socket = ellipse(u, v, 1.7 * person.eye_width, 2.3 * person.eye_height)
        face.canvas.shade(face.on_head(socket, 0.09), 0.84)
        almond = lens(u, v_tilted, person.eye_width, height)
        eyeball = face.on_head(almond)
        face.canvas.paint(eyeball, face.lit((0.93, 0.92, 0.90)))
        radius = 0.9 * person.eye_height
        gazing = u - nuisance.gaze
        for part, colour in ((1.0, person.iris), (0.45, DARK)):
            disc = ellipse(gazing, v, part * radius, part * radius)
            face.canvas.paint(face.on_head(np.minimum(disc, almond)), colour)
        glint = ellipse(
            gazing - math.copysign(0.3 * radius, nuisance.light_x), v + 0.4 * radius, 0.2 * radius, 0.2 * radius
        )
        face.canvas.paint(eyeball * cover(glint, face.edge), (0.95, 0.95, 0.95))
        lid = np.minimum(0.009 - np.abs(almond), 0.004 - v_tilted)  # the upper edge of the almond
        lid = np.minimum(lid, 1.08 * person.eye_width - np.abs(u))
        face.canvas.paint(0.8 * face.on_head(lid), _toned(person.skin, 0.25))


def _brows(face: _Face) -> None:
    person, seen = face.person, face.seen
    for side in SIDES:
        outwards = side * seen.u - person.eye_u
        middle = person.eye_v - person.brow_v - face.nuisance.brow_raise
        v = seen.v - middle + person.brow_slope * outwards + person.brow_arch * (0.01 - outwards * outwards)
        share = outwards * (1 / person.brow_length)
        distance = person.brow_thickness * (1 - 0.35 * share - 0.5 * share * share) - np.abs(v)
        distance = np.minimum(distance, person.brow_length - np.abs(outwards))
        face.canvas.paint(0.85 * face.on_head(distance, 0.015), _toned(person.hair, 0.7))


def _nose(face: _Face) -> None:
    """Paint along the line from the bridge to the tip, which the pose turns out of the middle of the face."""
    person, nuisance, seen = face.person, face.nuisance, face.seen
    (bridge_x, bridge_y), (tip_x, tip_y) = face.nose()
    height = tip_y - bridge_y
    down = (seen.y - bridge_y) * (1 / height)  # 0 at the bridge, 1 at the tip
    across = seen.x - bridge_x - (tip_x - bridge_x) * down
    half = person.nose_width * (0.35 + 0.65 * np.clip(down, 0, 1) ** 2)
    along = np.minimum(down - 0.1, 1.1 - down) * height
    ridge = np.minimum(half - np.abs(across), along)
    away = -1 if nuisance.light_x > 0 else 1  # the side that the light does not reach
    turned = min(abs(nuisance.light_x), 1.0)
    face.canvas.shade(face.on_head(np.minimum(ridge, away * across), 0.05), 1 - 0.3 * turned)
    face.canvas.shade(face.on_head(np.minimum(ridge, 0.3 * half - np.abs(across)), 0.03), 1.10)
    for side in SIDES:
        wing = np.abs(ellipse(across - side * 0.7 * person.nose_width, seen.y - tip_y + 0.01, 0.055, 0.06))
        outer = np.minimum(0.008 - wing, side * across - 0.7 * person.nose_width)
        face.canvas.shade(face.on_head(outer, 0.02), 0.62)
        nostril = ellipse(
            across - side * 0.48 * person.nose_width, seen.y - tip_y - 0.045, 1.2 * person.nostril, 0.6 * person.nostril
        )
        face.canvas.shade(face.on_head(nostril, 0.015), 0.35)
    under = ellipse(across, seen.y - tip_y - 0.06, 1.1 * person.nose_width, 0.03)
    face.canvas.shade(face.on_head(under, 0.06), 0.8)


def _beard(face: _Face) -> None:
    person, seen = face.person, face.seen
    if person.beard > 0:
        # Along the jaw: below a line that rises from the mouth to the ears.
        jaw = seen.v - person.mouth_v + 0.06 + 1.1 * np.maximum(np.abs(seen.u) - 0.25, 0)
        face.canvas.paint(person.beard * face.on_head(jaw, 0.12), face.lit(person.hair))
    if person.moustache > 0:
        middle = 0.5 * (person.nose_v + 0.06 + person.mouth_v - person.upper_lip)
        hair = ellipse(seen.u, seen.v - middle - 0.6 * seen.u * seen.u, 1.1 * person.mouth_width, 0.045)
        face.canvas.paint(person.moustache * face.on_head(hair, 0.03), face.lit(person.hair))


def _mouth(face: _Face) -> None:
    person, nuisance, seen = face.person, face.nuisance, face.seen
    share = seen.u * (1 / person.mouth_width)
    bow = 1 - share * share  # 1 in the middle, 0 at the corners
    v = seen.v - face.mouth_centre + face.corner_lift * share * share
    ends = person.mouth_width - np.abs(seen.u)
    gap = 0.5 * nuisance.mouth_open * bow
    lips = face.lit(person.lips)
    for thickness, tone, sign in ((person.upper_lip, 0.85, -1), (person.lower_lip, 1.0, 1)):
        # Cupid's bow: the upper lip is thinner in the middle.
        dent = 0.35 * np.maximum(1 - 30 * seen.u * seen.u, 0) if sign < 0 else 0.0
        lip = np.minimum(np.minimum(thickness * bow * (1 - dent) + gap - sign * v, sign * v), ends)
        face.canvas.paint(face.on_head(lip, 0.01), tone * lips)
    opening = np.minimum(gap + 0.006 - np.abs(v), ends)
    face.canvas.paint(face.on_head(opening), (0.16, 0.05, 0.05))
    if nuisance.mouth_open > 0.015:
        teeth = np.minimum(np.minimum(gap - np.abs(v), -v), 0.75 * person.mouth_width - np.abs(seen.u))
        face.canvas.paint(face.on_head(teeth), face.lit((0.88, 0.86, 0.80)))
    shadow = ellipse(seen.u, v - person.lower_lip - gap - 0.035, 0.7 * person.mouth_width, 0.02)
    face.canvas.shade(face.on_head(shadow, 0.06), 0.85)


def _hair_in_front(face: _Face) -> None:
    person, u, v = face.person, face.seen.u, face.seen.v
    line = person.hairline * person.half_height + person.hair_part * u - person.temples * u * u
    sides = np.abs(u) - person.half_width * (1.02 - 0.5 * person.hair_volume)  # over the temples, down to the ears
    sides = np.minimum(sides, person.eye_v + 0.1 - v) if person.hairline > -0.9 else np.full_like(u, -1)
    strands = 0.94 + 0.06 * np.cos(26 * u + 7 * v)
    over_outline = cover(face.seen.inside + face.edge, face.edge)  # else a line of skin stays along it
    hair = cover(np.maximum(line - v, sides), 0.05) * over_outline
    face.canvas.paint(hair, face.lit(person.hair) * strands)


def _glasses(face: _Face) -> None:
    person, nuisance, seen = face.person, face.nuisance, face.seen
    if not nuisance.glasses:
        return
    thickness, radius = 0.5 * nuisance.glasses_width, nuisance.glasses_radius
    for side in SIDES:
        u, v = seen.u - side * person.eye_u, seen.v - person.eye_v - 0.02
        # Between an ellipse and a rectangle: the fourth root of a sum of fourth powers.
        u, v = (u * (1 / (1.35 * radius))) ** 2, (v * (1 / radius)) ** 2
        glass = radius * (1 - np.sqrt(np.sqrt(u * u + v * v)))
        face.canvas.paint((0.15, 0.85)[nuisance.glasses - 1] * face.on_head(glass), (0.12, 0.13, 0.15))
        face.canvas.paint(face.on_head(thickness - np.abs(glass)), DARK)
        arm = np.minimum(thickness - np.abs(seen.v - person.eye_v), side * seen.u - person.eye_u - 1.35 * radius)
        face.canvas.paint(face.on_head(arm), DARK)
    bridge = np.minimum(thickness - np.abs(seen.v - person.eye_v), person.eye_u - 1.35 * radius - np.abs(seen.u))
    face.canvas.paint(face.on_head(bridge), DARK)


def _cloth(face: _Face) -> None:
    """A hat from the top of the head to a brim, a scarf from below."""
    person, nuisance, seen = face.person, face.nuisance, face.seen
    wide = 1.12 * person.half_width - np.abs(seen.x)
    if nuisance.hat:
        crown = ellipse(seen.x, seen.y + 0.05, 1.12 * person.half_width, 1.08 * person.half_height)
        brim = -0.5 * person.half_height - 0.25 * nuisance.pitch
        face.canvas.paint(cover(np.minimum(crown, brim - seen.y), face.edge), nuisance.cloth)
        band = np.minimum(0.04 - np.abs(seen.y - brim), wide + 0.1)
        face.canvas.paint(cover(band, face.edge), _toned(nuisance.cloth, 0.6))
    if nuisance.scarf:
        folds = 0.03 * np.cos(14 * seen.x)
        scarf = np.minimum(seen.y - nuisance.scarf_v - folds, wide)
        face.canvas.paint(cover(scarf, face.edge), nuisance.cloth)


LAYERS = (
    _background,
    _hair_behind,
    _shoulders,
    _ears,
    _skin,
    _moles,
    _nose,
    _beard,
    _mouth,
    _eyes,
    _brows,
    _hair_in_front,
    _glasses,
    _cloth,
)


def _exposed(canvas: Canvas, nuisance: Nuisance, noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (size, size, 3): the canvas through a camera."""
    size = canvas.pixels.shape[1]
    warm = np.array([1 + nuisance.warmth, 1, 1 - nuisance.warmth], dtype=np.float32)
    pixels = canvas.pixels * (nuisance.gain * warm)[:, None, None].astype(np.float32)
    if nuisance.blur > 0:
        sigma = nuisance.blur * size / 2
        pixels = gaussian_filter(pixels, (0, sigma, sigma), truncate=3.0)
    levels = 255 * (pixels + nuisance.noise * noise) + 0.5
    return np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _toned(colour: Colour, factor: float) -> Colour:
    """Return a darker or lighter colour."""
    red, green, blue = colour
    return factor * red, factor * green, factor * blue
