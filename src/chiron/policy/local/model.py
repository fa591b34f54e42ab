"""The default: learn what a step costs, then choose batch size and step-token budget together."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.decisions import Limits
from chiron.policy.local.base import check, is_evidence, untried_safe
from chiron.policy.local.learning import UNSEEN_BIAS, Learning
from chiron.policy.local.pairs import (
    Pair,
    best_pair,
    budgets,
    burst_pair,
    fillable,
    fit_batch,
    largest_batch,
)
from chiron.policy.local.probes import Probes
from chiron.policy.local.reactive import ReactiveAutoscaler
from chiron.policy.snapshots import InstanceSample

BURST = 1.0
"""Interactive requests that wait per one that runs, from which on the wait counts more than throughput."""
BETTER_BY = 1.01
"""A larger budget must promise so much more throughput than the one in force."""
NOT_WORSE_BY = 0.995
"""A smaller one, which keeps the lower ITL, this share of it."""
LASTING_LEAD = 1 / 3
"""Samples in a row on which it must promise that, per decision for which the one in force has been held."""
MOST_LEAD = 40
"""Samples in a row that are enough in any case."""
BATCH_IN_USE = 0.8
"""Share of the best batch size that must run before a wait counts as a burst; until then it is filling."""
TOO_SMALL = 0.02
TOO_LARGE = 0.02
"""Relative change of the best batch size from which the one in force follows, up and down."""
FEWEST_SLOTS = 1.08
MOST_SLOTS = 1.3
"""Slots per request at the knee between which a batch size that fills its steps is left alone."""
KV_HEADROOM = 0.9
"""Share of the KV cache that the batch is expected to hold at most."""


class ModelAutoscaler:
    """Chooses the pair of limits with the most throughput whose predicted ITL keeps a margin under the SLO.

    Reconstructed throughout: the paper has no such autoscaler. Until the fit has proved itself on a few
    samples, `reactive` decides. Every sample of a busy engine teaches what a step costs, so that the safe
    batch size is an estimate also while slots are spare. Then, per saturated sample: try budgets that could
    beat the best one known, each for an interval or a few, also past budgets that are worse (the step time is
    a staircase); then hold the best pair, correcting the batch size as KV use and bias are learned. In a
    burst, when at least as many interactive requests wait as run, the batch is as large as the ITL SLO
    allows and prompts are computed as fast as it allows, on purpose: that takes requests up while GPUs
    load. A shorter wait is left to the router's queue: steps of a burst yield fewer tokens, and so prolong
    it. Nothing grows on a sample that is no evidence; a batch size too large for the SLO in force shrinks on
    any, and what a probe or a burst opened is taken back once slots are spare.
    """

    def __init__(self) -> None:
        self._reactive = ReactiveAutoscaler()
        self._learning = Learning()
        self._probes = Probes()
        self._base: Pair | None = None
        self._lead = 0
        self._held = 0
        self._bursting = False

    def decide(self, sample: InstanceSample) -> Limits:
        """See `LocalAutoscaler.decide`."""
        check(sample)
        learning = self._learning
        learning.observe(sample)
        fallback = self._reactive.decide(sample)
        most = self._most(sample)
        if not learning.trusted:
            self._probes.stop()
            self._base = None
            return Limits(
                fallback.batch_size,
                fallback.step_token_budget,
                min(untried_safe(sample), most),
                f"model not trusted yet, reactive decides: {fallback.reason}",
                {**fallback.numbers, "samples": learning.samples, "error": learning.error},
            )
        if sample.itl_slo_s <= 0:
            # Not even for want of KV space: without an SLO no sample is evidence for growing again.
            reason = "nothing that runs has an ITL SLO: the limits stay"
            safe = min(sample.batch_size, most)
            return Limits(sample.batch_size, sample.step_token_budget, safe, reason, {})
        grid = budgets(sample.max_step_token_budget)
        safe = largest_batch(learning, grid, sample.itl_slo_s, most)
        if is_evidence(sample):
            pair, reason = self._choose(sample, grid, most, safe)
        else:
            pair, reason = self._spare(sample, most, safe)
        numbers = {**fallback.numbers, **self._numbers(sample, pair)}
        return Limits(pair.batch_size, pair.budget, safe, reason, numbers)

    def _choose(
        self, sample: InstanceSample, grid: tuple[int, ...], most: int, safe: int
    ) -> tuple[Pair, str]:
        learning, slo_s = self._learning, sample.itl_slo_s
        if self._base is not None and self._overloaded(sample, self._base):
            self._probes.stop()
            self._bursting = True
            pair = burst_pair(learning, grid, slo_s, safe)
            return pair, "burst: the largest batch predicted to keep the ITL SLO takes up the wait"
        usable = fillable(learning, grid, most)
        best = self._best_known(sample, usable, most)
        probe = self._probes.next(learning, sample, usable, most, best)
        if probe is not None:
            self._base = best
            return probe, "probe: this budget may beat the best one known"
        if self._base is not None and self._base.budget == best.budget and best.on_target:
            before = self._base.batch_size
            if before <= most and self._near_enough(before, best):
                best = self._predicted(before, best.budget)
        self._base = best
        if best.on_target:
            return best, "most throughput among the pairs predicted to keep the ITL SLO"
        return best, "no pair is predicted to keep the ITL SLO: the least ITL"

    def _best_known(self, sample: InstanceSample, usable: Sequence[int], most: int) -> Pair:
        """The pair in force, corrected, or that of a better budget, of those measured if there are any."""
        learning, slo_s = self._learning, sample.itl_slo_s
        self._bursting = False
        current = sample.step_token_budget if self._base is None else self._base.budget
        best = fit_batch(learning, min(current, usable[-1]), slo_s, most)
        known = [budget for budget in usable if learning.fit.measured(budget)]
        if not known:
            return best
        other = best_pair(learning, known, slo_s, most)
        if best.budget not in known or other.on_target > best.on_target or self._leads(other, best):
            return other
        return best

    def _spare(self, sample: InstanceSample, most: int, safe: int) -> tuple[Pair, str]:
        """Slots are spare: end a probe, shrink if need be, never grow."""
        batch_size, budget = sample.batch_size, sample.step_token_budget
        if (self._probes.stop() or self._bursting) and self._base is not None:
            batch_size = min(batch_size, self._base.batch_size)
            budget = min(self._base.budget, sample.max_step_token_budget)
        self._bursting = False
        if batch_size > safe:
            pair = fit_batch(self._learning, budget, sample.itl_slo_s, min(most, batch_size))
            return pair, "slots are spare, but the ITL SLO needs fewer"
        return self._predicted(batch_size, budget), "slots are spare: no evidence for a larger batch size"

    def _leads(self, other: Pair, best: Pair) -> bool:
        """Tell whether another budget is to replace the one in force.

        Of two that yield about the same, the smaller keeps the lower ITL. While probes go on the budget in
        force is provisional; after that, the longer it has been held the longer another must have led.
        """
        needed = BETTER_BY if other.budget > best.budget else NOT_WORSE_BY
        ahead = other.budget != best.budget and other.tokens_per_s > needed * best.tokens_per_s
        self._lead = self._lead + 1 if ahead else 0
        self._held = self._held + 1 if self._probes.done else 0
        if not ahead or self._lead < min(MOST_LEAD, LASTING_LEAD * self._held):
            return False
        self._lead = self._held = 0
        return True

    def _overloaded(self, sample: InstanceSample, base: Pair) -> bool:
        """Tell whether interactive requests wait that a larger batch would take up.

        That is so when with the best batch in use as many wait as run.
        """
        running = sample.running_interactive + sample.running_batch
        return running >= BATCH_IN_USE * base.batch_size and sample.waiting_interactive >= BURST * running

    def _near_enough(self, before: int, best: Pair) -> bool:
        """Tell whether the batch size in force may stay; above the knee a few slots do nothing."""
        knee = self._learning.knee(best.budget)
        was, now = min(before, knee), min(best.batch_size, knee)
        if was == now == knee and not FEWEST_SLOTS * knee <= before <= MOST_SLOTS * knee:
            return False
        return (1 - TOO_LARGE) * was <= now <= (1 + TOO_SMALL) * was

    def _predicted(self, batch_size: int, budget: int) -> Pair:
        return Pair(batch_size, budget, *self._learning.predict(batch_size, budget), True)

    def _most(self, sample: InstanceSample) -> int:
        """Requests whose KV fits with headroom, at the KV tokens per request seen lately, to the ceiling."""
        each = self._learning.mix.kv_per_request
        room = KV_HEADROOM * self._learning.kv_share * sample.kv_capacity_tokens
        if room >= each * sample.max_batch_size:
            return sample.max_batch_size
        return max(1, int(room / each))

    def _numbers(self, sample: InstanceSample, pair: Pair) -> dict[str, float]:
        learning = self._learning
        return {
            "itl_slo_s": sample.itl_slo_s,
            "target_itl_s": learning.target_s(sample.itl_slo_s),
            "predicted_itl_s": pair.itl_s,
            "predicted_tokens_per_s": pair.tokens_per_s,
            "kv_s_per_token": learning.fit.kv_s,
            "kv_per_request": learning.mix.kv_per_request,
            "prompt_share": learning.mix.prompt_share,
            "bias": learning.bias.get(pair.budget, UNSEEN_BIAS),
            "error": learning.error,
        }
