"""Random factors on the durations of an engine's steps."""

from __future__ import annotations

import numpy as np

from chiron.sim.settings import SimSettings

_NOISE_BLOCK = 256


class StepNoise:
    """Lognormal factors of mean 1 on step times; a stream of its own for each instance."""

    __slots__ = ("_factor", "_rng", "_sigma", "ready")

    def __init__(self, settings: SimSettings, number: int) -> None:
        self._factor = settings.step_time_factor
        self._sigma = settings.step_noise
        self._rng = np.random.default_rng((settings.seed, 1, number))
        self.ready: list[float] = []
        """The next factors, last first, for a caller that wants no call; draw() when there is none."""

    def draw(self) -> float:
        """Return the next factor."""
        if not self._sigma:
            return self._factor
        if not self.ready:
            exponents = self._rng.normal(-(self._sigma**2) / 2, self._sigma, _NOISE_BLOCK)
            self.ready += (self._factor * np.exp(exponents)).tolist()
        return self.ready.pop()
