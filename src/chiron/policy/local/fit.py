"""Step time learned online: a base per number of tokens in the step, and a time per KV token read."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from chiron.policy.local.regression import line_through

BUCKET_TOKENS = 8
"""Width of a bucket: the steps of the truth lie at multiples of it."""
MOST_MEMORY = 12.0
"""Samples that a bucket's mean remembers: older ones are discounted."""
SLOPE_MEMORY = 0.998
"""Discount per sample of what the KV slope rests on."""
CACHE_READ_S = 0.03
"""Time to read a full KV cache that is assumed at first: 60 GB at 2 TB/s, whatever the model."""
PRIOR_WEIGHT = 0.01
"""Weight of that assumption: as much as what an interval tells whose KV differs from its bucket's by a tenth
of the cache."""
NEAR_TOKENS = 48
"""A mean over uneven steps is left out where an even one lies as near as this."""

FLATTER = 0.3
"""Slope below the first bucket, relative to the curve's: the weights are read however few tokens step."""
LEAST_SHARE = 0.25
"""Share of the first bucket's base that a step takes at least."""
NEAR_SHARE = 0.1
"""So near a bucket, relative to the tokens, the curve counts as known."""


@dataclass(slots=True)
class _Bucket:
    count: float
    tokens: float
    kv_tokens: float
    step_s: float


class StepFit:
    """Step time = base(tokens in the step) + KV tokens x seconds per KV token (reconstructed).

    The base is no line: on real GPUs it is a staircase, so each bucket of tokens keeps its own discounted
    mean, and only what lies between or beyond the buckets seen is interpolated or extrapolated. The time per
    KV token is what step times and KV tokens have in common *within* the buckets (a fixed-effects
    regression), so the staircase cannot be mistaken for it; until that is known, reading the full cache is
    assumed to take CACHE_READ_S. Steps of one interval that all hold the same
    number of tokens measure the base there (`even`); otherwise the mean stands in where nothing better is
    near.
    """

    def __init__(self, kv_capacity_tokens: int = 0) -> None:
        self._even: dict[int, _Bucket] = {}
        self._uneven: dict[int, _Bucket] = {}
        self._prior_kv_kv = PRIOR_WEIGHT * kv_capacity_tokens * kv_capacity_tokens
        self._prior_kv_step = PRIOR_WEIGHT * kv_capacity_tokens * CACHE_READ_S
        self._kv_kv = 0.0
        self._kv_step = 0.0
        self.kv_s = 0.0
        self._used: list[_Bucket] = []
        self._tokens: list[float] = []
        self._base_s: list[float] = []
        self._upper_s: list[float] = []
        self._slope_s = 0.0

    @property
    def points(self) -> int:
        """Buckets that the curve rests on."""
        return len(self._tokens)

    def near(self, tokens: float) -> bool:
        """Tell whether a bucket is near enough that the curve is knowledge there, not extrapolation."""
        place = bisect_left(self._tokens, tokens)
        around = self._tokens[max(0, place - 1) : place + 1]
        return any(abs(known - tokens) <= max(BUCKET_TOKENS, NEAR_SHARE * tokens) for known in around)

    def reaches(self, tokens: float) -> bool:
        """Tell whether the curve begins at or little above so many tokens."""
        return bool(self._tokens) and tokens >= self._tokens[0] - NEAR_TOKENS

    def measured(self, tokens: int) -> bool:
        """Tell whether even steps of about so many tokens have been seen."""
        return _key(tokens) in self._even

    def observe(self, tokens: float, kv_tokens: float, step_s: float, even: bool) -> None:
        """Learn from one interval: mean tokens and seconds per step, mean KV tokens held."""
        buckets = self._even if even else self._uneven
        bucket = buckets.get(_key(tokens))
        if bucket is None:
            buckets[_key(tokens)] = _Bucket(1.0, tokens, kv_tokens, step_s)
            self._select()
        else:
            if even:
                weight = bucket.count / (bucket.count + 1)
                kv_change, step_change = kv_tokens - bucket.kv_tokens, step_s - bucket.step_s
                self._kv_kv = SLOPE_MEMORY * self._kv_kv + weight * kv_change * kv_change
                self._kv_step = SLOPE_MEMORY * self._kv_step + weight * kv_change * step_change
            share = 1 / (bucket.count + 1)
            bucket.tokens += share * (tokens - bucket.tokens)
            bucket.kv_tokens += share * (kv_tokens - bucket.kv_tokens)
            bucket.step_s += share * (step_s - bucket.step_s)
            bucket.count = min(MOST_MEMORY, bucket.count + 1)
        self._rebuild()

    def base_s(self, tokens: float) -> float:
        """Seconds of a step over so many tokens, KV reads excluded."""
        return self._interpolate(self._base_s, tokens)

    def least_s(self, tokens: float) -> float:
        """The base that may be hoped for: below the first bucket the curve falls as it does above."""
        if self._tokens and tokens < self._tokens[0]:
            fallen_s = self._base_s[0] - self._slope_s * (self._tokens[0] - tokens)
            return max(LEAST_SHARE * self._base_s[0], fallen_s)
        return self.base_s(tokens)

    def upper_s(self, tokens: float) -> float:
        """The largest base up to so many tokens: never falls as they grow."""
        return self._interpolate(self._upper_s, tokens)

    def _interpolate(self, values: list[float], tokens: float) -> float:
        known = self._tokens
        place = bisect_left(known, tokens)
        if place == 0:
            return max(LEAST_SHARE * values[0], values[0] - FLATTER * self._slope_s * (known[0] - tokens))
        if place == len(known):
            return values[-1] + self._slope_s * (tokens - known[-1])
        low, high = known[place - 1], known[place]
        return values[place - 1] + (values[place] - values[place - 1]) * (tokens - low) / (high - low)

    def _select(self) -> None:
        """Choose the buckets that the curve rests on; needed when one appears."""
        used = list(self._even.values())
        centres = [bucket.tokens for bucket in used]
        used += [
            bucket
            for bucket in self._uneven.values()
            if all(abs(bucket.tokens - centre) > NEAR_TOKENS for centre in centres)
        ]
        used.sort(key=_tokens)
        self._used = used

    def _rebuild(self) -> None:
        used = self._used
        kv_kv = self._kv_kv + self._prior_kv_kv
        if kv_kv > 0:
            ceiling = min((b.step_s / b.kv_tokens for b in used if b.kv_tokens > 0), default=math.inf)
            self.kv_s = min(max(0.0, (self._kv_step + self._prior_kv_step) / kv_kv), 0.9 * ceiling)
        kv_s = self.kv_s
        self._tokens = [bucket.tokens for bucket in used]
        self._base_s = [bucket.step_s - kv_s * bucket.kv_tokens for bucket in used]
        self._upper_s = list(accumulate(self._base_s, max))
        self._slope_s = line_through(self._tokens, self._base_s)


def _tokens(bucket: _Bucket) -> float:
    return bucket.tokens


def _key(tokens: float) -> int:
    return round(tokens / BUCKET_TOKENS)
