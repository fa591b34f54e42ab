"""Inter-token latencies and counts, cumulative, so that any number of readers can take differences. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_LEAST_S = 1e-5
_GROWTH = math.log(1.03)
_BUCKETS = 560
"""From 10 µs in steps of 3 % to 150 s."""
_RECENT_S = 1.0
_RECENT_PARTS = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """The meter at one instant."""

    itl_sum_s: float
    itl_count: int
    itl_buckets: tuple[int, ...]
    finished: tuple[int, int]
    """Requests ended since the start: interactive, batch."""


class Meter:
    """Records what passes. A token costs one logarithm."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0
        self._buckets = [0] * _BUCKETS
        self._finished = [0, 0]
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=_RECENT_PARTS + 1)

    def tokens(self, gap_s: float, count: int, now: float) -> None:
        """`count` tokens, each `gap_s` after the one before, the last at `now`; monotonic seconds."""
        index = int(math.log(gap_s / _LEAST_S) / _GROWTH) if gap_s > _LEAST_S else 0
        self._buckets[min(index, _BUCKETS - 1)] += count
        self._sum += gap_s * count
        self._count += count
        if not self._recent or now - self._recent[-1][0] >= _RECENT_S / _RECENT_PARTS:
            self._recent.append((now, self._sum - gap_s * count, self._count - count))

    def ended(self, *, batch: bool) -> None:
        """A request has ended."""
        self._finished[batch] += 1

    def read(self) -> Reading:
        """The present totals."""
        interactive, batch = self._finished
        return Reading(self._sum, self._count, tuple(self._buckets), (interactive, batch))

    def recent_itl_ms(self, now: float) -> float:
        """Mean time between tokens over the last second, in milliseconds; 0 when nothing ran."""
        while self._recent and now - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        _, before_sum, before_count = self._recent[0]
        return 1e3 * (self._sum - before_sum) / (self._count - before_count)


def mean_itl_ms(before: Reading, after: Reading) -> float:
    """Mean time between tokens from one reading to the next, in milliseconds; 0 without tokens."""
    count = after.itl_count - before.itl_count
    return 1e3 * (after.itl_sum_s - before.itl_sum_s) / count if count else 0.0


def quantile_itl_ms(before: Reading, after: Reading, share: float) -> float:
    """The latency that `share` of the tokens stayed within, in milliseconds, to 3 %; 0 without tokens."""
    count = after.itl_count - before.itl_count
    rank, seen = math.ceil(share * count), 0
    for index, (old, new) in enumerate(zip(before.itl_buckets, after.itl_buckets, strict=True)):
        seen += new - old
        if count and seen >= rank:
            return 1e3 * _LEAST_S * math.exp((index + 0.5) * _GROWTH)
    return 0.0
