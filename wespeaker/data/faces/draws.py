"""Random numbers as Python floats, so that they leave float32 arrays as they are."""

from __future__ import annotations

import numpy as np

MAX_DEVIATIONS = 2.5  # of a normal draw: a face with an eye beyond that is no face


class Draws:
    """What identities and nuisances are drawn with; the order of the calls decides the numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def normal(self, mean: float, deviation: float) -> float:
        """Draw from a normal distribution, clipped at 2.5 standard deviations."""
        return mean + deviation * float(np.clip(self._rng.standard_normal(), -MAX_DEVIATIONS, MAX_DEVIATIONS))

    def uniform(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return low + (high - low) * float(self._rng.random())

    def chance(self, probability: float) -> bool:
        """Return true with a probability."""
        return bool(self._rng.random() < probability)

    def colour(self, low: float, high: float) -> tuple[float, float, float]:
        """Draw a grey from [low, high), then red, green and blue near it."""
        grey = self.uniform(low, high)
        red, green, blue = (min(max(grey + self.uniform(-0.2, 0.2), 0.0), 1.0) for _ in range(3))
        return red, green, blue
