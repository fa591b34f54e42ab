"""Bounded exploration: budgets that have not been measured and may beat the best one known."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.local.learning import Learning
from chiron.policy.local.pairs import Pair, full_batch
from chiron.policy.snapshots import InstanceSample

OPTIMISM = 0.12
"""How much less than interpolated the base of a step may take: the depth of the staircase."""
MOST_INTERVALS = 4
"""A probe that has not filled its steps by then is given up."""
WORTHWHILE = 1.01
"""Promised throughput over the best known from which a probe is worth its time."""
WORTHWHILE_LATER = 1.05
"""The same once nothing was worth trying: estimates that waver about the threshold start no probes."""
CLEARANCE = 1.1
"""A budget is tried once it exceeds the decodes by so much: below them there is no room for prompt."""

MOST_EXCESS = 1.1
"""ITL, as a share of the SLO, up to which filled steps are tried: a smaller batch may keep the SLO there."""


class Probes:
    """Which budget to try next, and when to stop. Each is tried once, until what was learned is forgotten."""

    def __init__(self) -> None:
        self._budget = 0
        self._intervals = 0
        self._tried: set[int] = set()
        self._forgotten = 0
        self.done = False
        """Nothing was worth trying any more."""

    def stop(self) -> bool:
        """End the probe under way; tell whether there was one."""
        running = self._budget > 0
        self._budget = 0
        return running

    def next(
        self, learning: Learning, sample: InstanceSample, grid: Sequence[int], most: int, best: Pair
    ) -> Pair | None:
        """Return the pair to try in the coming interval; None when nothing promises more than the best."""
        if learning.forgotten != self._forgotten:
            self._forgotten = learning.forgotten
            self._tried.clear()
            self.done = False
            self._budget = 0
        if self._budget > sample.max_step_token_budget:
            self._budget = 0
        if self._budget and sample.step_token_budget == self._budget:
            self._intervals += 1
            over = sample.itl_mean_s > sample.itl_slo_s
            if learning.fit.measured(self._budget) or self._intervals >= MOST_INTERVALS or over:
                self._tried.add(self._budget)
                self._budget = 0
        if not self._budget:
            self._budget = self._pick(learning, sample, grid, most, best)
            self._intervals = 0
        if not self._budget:
            self.done = True
            return None
        running = sample.running_interactive + sample.running_batch
        # Room for admissions fills the steps at once, also while more decode than this budget will sustain.
        batch_size = min(most, max(full_batch(learning, self._budget), round(CLEARANCE * running)))
        itl_s, tokens_per_s = learning.predict(batch_size, self._budget)
        return Pair(batch_size, self._budget, itl_s, tokens_per_s, True)

    def _pick(
        self, learning: Learning, sample: InstanceSample, grid: Sequence[int], most: int, best: Pair
    ) -> int:
        """The budget with the largest promise above the best pair, or 0."""
        decoded = (sample.computed_tokens - sample.prompt_tokens) / sample.steps
        target_s = learning.target_s(sample.itl_slo_s)
        needed = WORTHWHILE_LATER if self.done else WORTHWHILE
        sure = best.on_target and learning.fit.measured(best.budget)
        promise, chosen = needed * best.tokens_per_s if sure else 0.0, 0
        for budget in grid:
            if budget in self._tried or budget < CLEARANCE * decoded or learning.fit.measured(budget):
                continue
            # Within the curve the promise is at most this much above the prediction: most are out at once.
            if learning.fit.reaches(budget) and learning.filled(budget)[1] <= promise * (1 - OPTIMISM):
                continue
            if full_batch(learning, budget) > most:
                break
            itl_s, tokens_per_s = learning.promised(budget, 1 - OPTIMISM)
            if itl_s > MOST_EXCESS * sample.itl_slo_s:
                continue
            promised = tokens_per_s * min(1.0, target_s / itl_s)
            if promised > promise:
                promise, chosen = promised, budget
        return chosen
