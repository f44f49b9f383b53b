"""What differs between the images of one rendered person: pose, light, expression, things worn, and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wespeaker.data.faces.draws import Draws
from wespeaker.data.faces.identity import Colour
from wespeaker.data.randomness import generator


@dataclass(frozen=True)
class Nuisance:
    """One moment and one camera.

    Attributes:
        yaw, pitch, roll: in radians; positive turns the face to the image's right, down, and clockwise.
        scale, shift_x, shift_y: of the face in the image; shifts in halves of the image.
        light_x, light_y: direction of the light, 0 is from the camera; 1 is 45 degrees from the right and from below.
        ambient: share of the light that has no direction.
        gain, warmth: of the exposure.
        smile: how far the corners of the mouth go up, in units of `SMILE_LIFT`.
        mouth_open: distance of the lips.
        eyelids: what part of the eyes is open.
        brow_raise: of the brows.
        gaze: of the irises to the right.
        glasses: 0 for none, then frames with clear and with dark glass.
        glasses_radius, glasses_width: half the height of a lens, and the thickness of the frame.
        hat, scarf: whether one is worn; the scarf covers the chin from ``scarf_v`` on.
        clothes, background, second_background, cloth: colours; ``cloth`` is the hat's and the scarf's.
        blur: standard deviation in halves of the image.
        noise: standard deviation of the pixels' noise, of the range [0, 1].

    """

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift_x: float
    shift_y: float
    light_x: float
    light_y: float
    ambient: float
    gain: float
    warmth: float
    smile: float
    mouth_open: float
    eyelids: float
    brow_raise: float
    gaze: float
    glasses: int
    glasses_radius: float
    glasses_width: float
    hat: bool
    scarf: bool
    scarf_v: float
    clothes: Colour
    background: Colour
    second_background: Colour
    cloth: Colour
    blur: float
    noise: float


def draw_nuisance(seed: int, identity: int, k: int) -> Nuisance:
    """Return what image ``k`` of a person was taken with."""
    draws = Draws(generator(seed, "nuisance", identity, k))
    normal, uniform, chance = draws.normal, draws.uniform, draws.chance
    worn = uniform(0, 1)
    return Nuisance(
        yaw=normal(0, 0.2),
        pitch=normal(0, 0.09),
        roll=normal(0, 0.06),
        scale=math.exp(normal(0, 0.045)),
        shift_x=normal(0, 0.03),
        shift_y=normal(0, 0.03),
        light_x=normal(0, 0.5),
        light_y=normal(-0.4, 0.3),
        ambient=uniform(0.45, 0.8),
        gain=math.exp(normal(0, 0.12)),
        warmth=normal(0, 0.05),
        smile=normal(0.2, 0.6),
        mouth_open=max(0.0, normal(-0.01, 0.03)),
        eyelids=uniform(0.05, 0.3) if chance(0.04) else uniform(0.75, 1.1),
        brow_raise=normal(0, 0.018),
        gaze=normal(0, 0.02),
        glasses=int(worn > 0.78) + int(worn > 0.96),
        glasses_radius=uniform(0.11, 0.15),
        glasses_width=uniform(0.012, 0.03),
        hat=chance(0.07),
        scarf=chance(0.05),
        scarf_v=uniform(0.3, 0.6),
        clothes=draws.colour(0.05, 0.9),
        background=draws.colour(0.3, 0.7),
        second_background=draws.colour(0.3, 0.7),
        cloth=draws.colour(0.05, 0.9),
        blur=uniform(0.01, 0.035) if chance(0.25) else 0.0,
        noise=abs(normal(0.0, 0.02)),
    )
