"""How fast a queue drains: output tokens per second that its work makes while something waits
(reconstructed)."""

from __future__ import annotations

import math

_CORRELATED_S = 30.0
"""For how long a deviation from the mean lasts, in seconds: other load comes and goes in minutes."""


class DrainRate:
    """A discounted mean with its scatter. Starts with nothing, and takes the first observation as it is."""

    def __init__(self, half_life_s: float = 120.0) -> None:
        """half_life_s: of what was measured, in seconds, > 0."""
        self._half_life_s = half_life_s
        self._weight_s = 0.0
        self._sum = 0.0
        self._squares = 0.0

    def observe(self, tokens_per_s: float, interval_s: float) -> None:
        """What the work has made for so long."""
        keep = 0.5 ** (interval_s / self._half_life_s)
        self._weight_s = self._weight_s * keep + interval_s
        self._sum = self._sum * keep + tokens_per_s * interval_s
        self._squares = self._squares * keep + tokens_per_s**2 * interval_s

    @property
    def known(self) -> bool:
        """Whether anything was made."""
        return self._sum > 0

    @property
    def tokens_per_s(self) -> float:
        """The mean; 0 until known."""
        return self._sum / self._weight_s if self._weight_s else 0.0

    @property
    def noise(self) -> float:
        """Variance of the work done, per second, in tokens²/s."""
        return self._variance * _CORRELATED_S

    @property
    def drift(self) -> float:
        """Standard error of the mean, in tokens per second."""
        independent = max(1.0, self._weight_s / _CORRELATED_S)
        return math.sqrt(self._variance / independent)

    @property
    def _variance(self) -> float:
        mean = self.tokens_per_s
        return max(0.0, self._squares / self._weight_s - mean**2) if self._weight_s else 0.0
