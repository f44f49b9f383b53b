"""What makes a rendered face one person's: some forty numbers, drawn from (seed, identity)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wespeaker.data.faces.draws import Draws
from wespeaker.data.randomness import generator

Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

# Ends of the scales that tones are mixed from, as they look in even light.
SKIN: tuple[Colour, Colour] = ((0.95, 0.78, 0.68), (0.33, 0.21, 0.15))
HAIR: tuple[Colour, Colour] = ((0.07, 0.05, 0.05), (0.80, 0.62, 0.36))
IRIS: tuple[Colour, Colour] = ((0.22, 0.12, 0.06), (0.35, 0.52, 0.62))
NUM_MOLES = 3
NUM_WAVES = 5


@dataclass(frozen=True)
class Identity:
    """One person.

    Lengths are in units of half the image at scale 1; ``u`` points right and ``v`` down on the front of the head,
    from its centre.

    Attributes:
        half_width, half_height, depth: half-axes of the head, an ellipsoid.
        jaw, forehead: by what part the head is narrower at the chin and at the top.
        eye_u, eye_v, eye_width, eye_height: centre of the right eye of the image, and its half-axes.
        eye_tilt: how far outer corners are raised, as a slope.
        brow_v, brow_length, brow_thickness, brow_slope, brow_arch: of the brows, ``brow_v`` above the eyes.
        nose_v, nose_width, nose_depth, nostril: of the tip; ``nose_depth`` is how far it stands out.
        mouth_v, mouth_width, upper_lip, lower_lip, mouth_curve: half-width; a positive curve lifts the corners.
        skin, hair, iris, lips: colours.
        hairline, hair_part, temples, hair_volume, hair_length: the hair begins at ``hairline`` (of the half-height),
            slopes with ``hair_part``, recedes with ``temples``; how much wider than the head it is; where it ends.
        beard, moustache: coverage in [0, 1].
        ears: half-height of the ears.
        moles: (3, 4) positions u and v, radius and darkness.
        waves: (5, 4) texture of the skin: frequencies in u and v, phase and weight.

    """

    half_width: float
    half_height: float
    depth: float
    jaw: float
    forehead: float
    eye_u: float
    eye_v: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_v: float
    brow_length: float
    brow_thickness: float
    brow_slope: float
    brow_arch: float
    nose_v: float
    nose_width: float
    nose_depth: float
    nostril: float
    mouth_v: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    mouth_curve: float
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    hairline: float
    hair_part: float
    temples: float
    hair_volume: float
    hair_length: float
    beard: float
    moustache: float
    ears: float
    moles: tuple[tuple[float, float, float, float], ...]
    waves: tuple[tuple[float, float, float, float], ...]


def draw_identity(seed: int, identity: int) -> Identity:
    """Return person number ``identity`` of the population ``seed``."""
    draws = Draws(generator(seed, "identity", identity))
    normal, uniform, chance = draws.normal, draws.uniform, draws.chance
    skin_depth = uniform(0, 1)
    skin = tinted(mixed(SKIN, skin_depth), normal(0, 0.03))
    # Darker skin mostly goes with darker hair and eyes.
    hair = mixed(HAIR, uniform(0, 1) ** 2 * (1 - 0.8 * skin_depth))
    if chance(0.15):  # grey
        hair = mixed((hair, (0.62, 0.62, 0.62)), uniform(0.4, 1))
    height, eye_v = normal(0.80, 0.05), normal(-0.08, 0.035)
    bearded = chance(0.3)
    return Identity(
        half_width=normal(0.60, 0.045),
        half_height=height,
        depth=normal(0.66, 0.05),
        jaw=normal(0.14, 0.10),
        forehead=normal(0.06, 0.05),
        eye_u=normal(0.255, 0.025),
        eye_v=eye_v,
        eye_width=normal(0.105, 0.013),
        eye_height=normal(0.050, 0.012),
        eye_tilt=normal(0.05, 0.10),
        brow_v=normal(0.135, 0.025),
        brow_length=normal(0.155, 0.025),
        brow_thickness=abs(normal(0.022, 0.010)) + 0.006,
        brow_slope=normal(-0.03, 0.12),
        brow_arch=normal(1.5, 1.0),
        nose_v=eye_v + normal(0.29, 0.04),
        nose_width=normal(0.105, 0.022),
        nose_depth=normal(0.13, 0.03),
        nostril=normal(0.030, 0.007),
        mouth_v=normal(0.44, 0.035),
        mouth_width=normal(0.205, 0.032),
        upper_lip=abs(normal(0.030, 0.012)) + 0.006,
        lower_lip=abs(normal(0.040, 0.015)) + 0.008,
        mouth_curve=normal(0.0, 0.02),
        skin=skin,
        hair=hair,
        iris=mixed(IRIS, uniform(0, 1) * (1 - 0.8 * skin_depth)),
        lips=mixed((skin, (0.66, 0.22, 0.24)), uniform(0.25, 0.7)),
        hairline=-0.98 if chance(0.08) else normal(-0.64, 0.12),
        hair_part=normal(0.0, 0.25),
        temples=normal(0.1, 0.5),
        hair_volume=abs(normal(0.10, 0.09)) + 0.02,
        hair_length=uniform(0.2, 1.3) if chance(0.5) else normal(-0.05, 0.1),
        beard=uniform(0.15, 0.8) if bearded else 0.0,
        moustache=uniform(0.2, 0.8) if bearded or chance(0.06) else 0.0,
        ears=normal(0.14, 0.025),
        moles=tuple(
            (uniform(-0.42, 0.42), uniform(-0.45, 0.6), uniform(0.012, 0.032), uniform(0.2, 0.8))
            for _ in range(NUM_MOLES)
        ),
        waves=tuple(
            (normal(0, 6), normal(0, 6), uniform(0, 2 * np.pi), abs(normal(0, 0.035))) for _ in range(NUM_WAVES)
        ),
    )


def mixed(ends: tuple[Colour, Colour], share: float) -> Colour:
    """Return the colour at ``share`` of the way between two."""
    red, green, blue = (a + share * (b - a) for a, b in zip(*ends, strict=True))
    return red, green, blue


def tinted(colour: Colour, warmth: float) -> Colour:
    """Return a colour with more red and less blue."""
    red, green, blue = colour
    return red * (1 + warmth), green, blue * (1 - warmth)
