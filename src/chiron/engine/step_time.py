"""Step time against tokens in the step: measured points, linear in between."""

import itertools
from collections.abc import Sequence
from functools import lru_cache

from chiron.engine.errors import InvalidLimitError

DENSE_TOKENS = 16_384
"""Token counts at least up to this one are tabulated: a look-up on the hot path is one list index."""


def check_points(points: Sequence[tuple[int, float]]) -> None:
    """Raise InvalidLimitError unless two points or more ascend in tokens, all figures positive."""
    if len(points) < 2:
        raise InvalidLimitError("step_time_ms", f"needs at least 2 points, got {len(points)}")
    previous = 0
    for tokens, milliseconds in points:
        if tokens <= previous:
            raise InvalidLimitError(
                "step_time_ms", f"tokens must ascend from 1, got {tokens} after {previous}"
            )
        if milliseconds <= 0:
            raise InvalidLimitError(
                "step_time_ms", f"time at {tokens} tokens must be positive, got {milliseconds}"
            )
        previous = tokens


class StepTimeTable:
    """Seconds per step for any number of tokens >= 1.

    Below the first point its time holds; beyond the last, the line through the last two points continues.
    """

    __slots__ = ("_last_s", "_last_tokens", "_slope_s", "dense")

    def __init__(self, points: tuple[tuple[int, float], ...]) -> None:
        check_points(points)
        (before_tokens, before_ms), (last_tokens, last_ms) = points[-2:]
        self._last_tokens = last_tokens
        self._last_s = last_ms / 1e3
        self._slope_s = (last_ms - before_ms) / 1e3 / (last_tokens - before_tokens)
        if self._slope_s < 0:
            raise InvalidLimitError("step_time_ms", "must not fall between the last two points")
        first_tokens, first_ms = points[0]
        dense = [first_ms / 1e3] * (first_tokens + 1)
        for (low, low_ms), (high, high_ms) in itertools.pairwise(points):
            width = high - low
            dense.extend((low_ms + (high_ms - low_ms) * i / width) / 1e3 for i in range(1, width + 1))
        dense.extend(self._beyond(tokens) for tokens in range(len(dense), DENSE_TOKENS + 1))
        # Seconds by tokens, for a hot path that wants no call.
        self.dense = dense

    def _beyond(self, tokens: int) -> float:
        return self._last_s + self._slope_s * (tokens - self._last_tokens)

    def seconds(self, tokens: int) -> float:
        """Seconds of a step over this many tokens (>= 1), attention excluded."""
        if tokens < len(self.dense):
            return self.dense[tokens]
        return self._beyond(tokens)


@lru_cache(maxsize=64)
def step_time_table(points: tuple[tuple[int, float], ...]) -> StepTimeTable:
    """Return the table of these points, shared by every engine with the same profile."""
    return StepTimeTable(points)
