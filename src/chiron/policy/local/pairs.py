"""Pairs of batch size and step-token budget: which keep a target ITL, and which yields most."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chiron.policy.local.learning import LEAST_MARGIN, Learning

BUDGET_TOKENS = 64
"""Grid of the budgets: matrix kernels work in tiles of 64 and 128 tokens, so the steps lie there."""
MISSES = 2
"""Budgets tried whose filled steps are off target."""
SLACK = 1.15
"""Slots beyond the knee, for requests whose prompt is being computed."""

HEADROOM = 0.05
"""Distance of the ITL to its target, as a share of it, from which on there are as many slots as that; less
near it, so that a wavering estimate moves the batch size little."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Limits with what is predicted of them."""

    batch_size: int
    budget: int
    itl_s: float
    tokens_per_s: float
    on_target: bool

    def rank(self) -> tuple[bool, float]:
        """Order of preference, the best last."""
        return (self.on_target, self.tokens_per_s if self.on_target else -self.itl_s)


@lru_cache(maxsize=64)
def budgets(ceiling: int) -> tuple[int, ...]:
    """Return the step-token budgets to choose from: multiples of 64 to 1,024, of 256 to 4,096, of 1,024."""
    grid = [*range(BUDGET_TOKENS, 1024, BUDGET_TOKENS), *range(1024, 4096, 256), *range(4096, 16385, 1024)]
    return tuple(tokens for tokens in grid if tokens <= ceiling) or (ceiling,)


def full_batch(learning: Learning, budget: int) -> int:
    """Return the batch size that fills every step to the budget, with slots for prompts under way."""
    return math.ceil(SLACK * learning.knee(budget))


def fillable(learning: Learning, grid: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the budgets whose steps a batch of at most so many requests fills; the smallest at least."""
    largest = most * learning.tokens_each / SLACK
    return grid[: bisect_right(grid, largest)] or grid[:1]


def fit_batch(learning: Learning, budget: int, slo_s: float, most: int) -> Pair:
    """Return the largest useful batch, 1 to `most`, whose predicted ITL under this budget is on target.

    When steps filled to the budget are on target the knee decides, beyond which nothing is gained; else the
    ITL does, which below the knee never falls as the batch grows. A batch of 1 may be off target.
    """
    if full_batch(learning, budget) <= most:
        itl_s, tokens_per_s = learning.filled(budget)
        filled_s = learning.target_s(slo_s)
        if itl_s <= filled_s:
            return Pair(_slots(learning, budget, itl_s, filled_s), budget, itl_s, tokens_per_s, True)
    target_s = (1 - LEAST_MARGIN) * slo_s
    batch_size = learning.largest_within(budget, target_s, most)
    itl_s, tokens_per_s = learning.predict(batch_size, budget)
    return Pair(batch_size, budget, itl_s, tokens_per_s, itl_s <= target_s)


def _slots(learning: Learning, budget: int, itl_s: float, target_s: float) -> int:
    """Slots for filled steps whose ITL is on target: the knee, with the more slack the farther from it."""
    headroom = min(1.0, (target_s - itl_s) / (HEADROOM * target_s))
    return math.ceil((1 + (SLACK - 1) * headroom) * learning.knee(budget))


def best_pair(learning: Learning, candidates: Sequence[int], slo_s: float, most: int) -> Pair:
    """Return the pair on target with the most throughput; off target, the one with the least ITL.

    `candidates` ascend. Past the second budget whose filled steps are off target none is tried: a larger one
    only makes the steps that carry prompt longer.
    """
    best: Pair | None = None
    misses = 0
    for budget in candidates:
        pair = fit_batch(learning, budget, slo_s, most)
        if best is None or pair.rank() > best.rank():
            best = pair
        misses += pair.batch_size < full_batch(learning, budget)
        if misses == MISSES:
            break
    if best is None:
        raise ValueError("candidates: at least one budget is needed")
    return best


def largest_batch(learning: Learning, grid: Sequence[int], slo_s: float, most: int) -> int:
    """Return the largest batch size, to `most`, that any budget keeps on target; 1 if none does.

    Never smaller for a looser SLO: budgets that fill their steps on target stay so, and what the next larger
    budget carries besides is less than what it would carry when on target itself.
    """
    target_s = learning.target_s(slo_s)
    largest, first_missed = 0, len(grid)
    # The first budget that fills its steps with `most` requests is the last one worth a look.
    last = min(len(grid), bisect_right(grid, most * learning.tokens_each / SLACK) + 1)
    for index in range(last - 1, -1, -1):
        budget = grid[index]
        if full_batch(learning, budget) <= largest:
            break
        itl_s, _ = learning.filled(budget)
        if itl_s <= target_s:
            largest = max(largest, _slots(learning, budget, itl_s, target_s))
        elif not largest:
            first_missed = index
    if largest < most and first_missed < len(grid):
        largest = max(largest, fit_batch(learning, grid[first_missed], slo_s, most).batch_size)
    return max(1, min(largest, most))


def burst_pair(learning: Learning, grid: Sequence[int], slo_s: float, batch_size: int) -> Pair:
    """Return the pair of this batch size and the largest budget whose ITL is on target with all decoding.

    While prompts wait it computes them as fast as the SLO lets it; later steps are filled less.
    """
    target_s = learning.target_s(slo_s)
    for budget in reversed(grid):
        if learning.knee(budget) * SLACK < batch_size:
            break
        itl_s = learning.all_decoding_s(batch_size, budget)
        if itl_s <= target_s:
            return Pair(batch_size, budget, itl_s, batch_size / itl_s, True)
    for budget in grid:
        if learning.knee(budget) * SLACK >= batch_size:
            return Pair(batch_size, budget, *learning.predict(batch_size, budget), True)
    return fit_batch(learning, grid[-1], slo_s, batch_size)
