"""The rate of interactive arrivals and how sure it is, over one load time up to twenty-four."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

_BLOCKS_PER_LOAD = 4
_RECENT = _BLOCKS_PER_LOAD
_SPANS = (_RECENT, 8 * _BLOCKS_PER_LOAD, 24 * _BLOCKS_PER_LOAD)


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """Reconstructed. Requests per second, with standard errors."""

    rising: float
    """What it surely is by now: the best of the lower bounds from the last quarter, half and whole load."""
    likely: float
    """The mean over the span that gives this bound."""
    settled: float
    """Over the longest of the last 1, 8 and 24 load times that differs from the next shorter one by no more
    than chance."""
    settled_error: float
    falling: float
    """What it surely is not above by now: the least of the upper bounds from the last quarter, half and whole
    load."""
    usual: float
    """Over the last 24 load times, whatever has changed meanwhile."""


class Arrivals:
    """Counts arrivals in blocks of a quarter of a load time; the spread between blocks gives the errors."""

    def __init__(self) -> None:
        self._blocks: deque[float] = deque(maxlen=_SPANS[-1])
        self._count = 0.0
        self._seconds = 0.0

    def record(self, arrived: int, interval_s: float, load_time_s: float) -> None:
        """Count what arrived in an interval of this length."""
        self._count += arrived
        self._seconds += interval_s
        if self._seconds > 0 and self._seconds >= load_time_s / _BLOCKS_PER_LOAD * (1 - 1e-6):
            self._blocks.append(self._count / self._seconds)
            self._count = self._seconds = 0.0

    def rate(self, confidence: float) -> ArrivalRate | None:
        """The rate; None until two load times have been counted. confidence: errors that are not chance."""
        blocks = self._blocks
        if len(blocks) < 2 * _RECENT:
            return None
        values = list(blocks)
        # Differences of neighbours, because a change of level must not count as spread.
        square = sum((b - a) ** 2 for a, b in itertools.pairwise(values)) / (2 * (len(values) - 1))
        tail = values[-_RECENT:]
        rising, likely = max(
            (mean - confidence * math.sqrt(square / number), mean)
            for number in (1, 2, _RECENT)
            for mean in (sum(tail[-number:]) / number,)
        )
        falling = min(
            sum(tail[-number:]) / number + confidence * math.sqrt(square / number)
            for number in (1, 2, _RECENT)
        )
        mean, error = sum(tail) / _RECENT, math.sqrt(square / _RECENT)
        for span in _SPANS[1:]:
            number = min(span, len(values))
            longer = sum(values[-number:]) / number
            if abs(longer - mean) > confidence * error:
                break
            mean, error = longer, math.sqrt(square / number)
        return ArrivalRate(max(0.0, rising), likely, mean, error, falling, sum(values) / len(values))
