"""The slope by which step time grows beyond what has been seen."""

from __future__ import annotations

from collections.abc import Sequence

SHARE_OF_ONE_POINT = 0.5
"""With one point only, half of a step's time is taken to grow with its tokens."""


def line_through(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the least-squares slope in seconds per token, kept between 0 and a line through the origin."""
    count = len(tokens)
    mean_tokens = sum(tokens) / count
    mean_s = sum(seconds) / count
    steepest = mean_s / mean_tokens if mean_tokens > 0 else 0.0
    spread = common = 0.0
    for x, y in zip(tokens, seconds, strict=True):
        away = x - mean_tokens
        spread += away * away
        common += away * y
    if spread <= (0.05 * mean_tokens) ** 2:
        return SHARE_OF_ONE_POINT * steepest
    return min(max(0.0, common / spread), steepest)
