"""A local autoscaler in closed loop with one saturated engine, and the static limits that it competes with.

A decision each second. A pair of limits keeps an SLO when at least 99 % of the requests that finish have a
mean ITL within it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chiron.engine import get_profile
from chiron.policy.local import load_local
from chiron.sim.saturated_engine import SaturatedEngine, Tally

KEEPS = 0.99
NEAR = 0.10
WINDOW = 20
"""Seconds that are judged together."""

Pair = tuple[int, int]
"""Batch size, step-token budget."""


@dataclass(frozen=True, slots=True)
class Loop:
    """What is run for how long."""

    profile: str = "llama3-8b@a100"
    warm_up_s: int = 100
    measured_s: int = 200


@dataclass(frozen=True, slots=True)
class Yield:
    """What a static pair yields with one seed."""

    tokens_per_s: float
    attained: dict[float, float]
    """SLO in seconds -> share of the requests within it."""


@dataclass(frozen=True, slots=True)
class Converged:
    """One policy in closed loop."""

    limits: list[Pair]
    """After each decision."""
    intervals: list[Tally]
    """Before each decision."""
    measured: Tally
    """After the warm-up."""
    decision_us: float
    """CPU time of a decision, on average."""


def static(loop: Loop, pair: Pair, seed: int) -> Tally:
    """What limits that stay as they are yield after the warm-up."""
    engine = _engine(loop, pair, seed)
    engine.run(loop.warm_up_s)
    return engine.run(loop.measured_s)


def swept(
    loop: Loop, batch_sizes: Iterable[int], budgets: Sequence[int], slos_s: Sequence[float], seed: int
) -> dict[Pair, Yield]:
    """Every pair with a token for each slot, with one seed."""
    found = {}
    for batch_size in batch_sizes:
        for budget in budgets:
            if budget >= batch_size:
                tally = static(loop, (batch_size, budget), seed)
                attained = {slo_s: tally.attained(slo_s) for slo_s in slos_s}
                found[batch_size, budget] = Yield(tally.tokens_per_s, attained)
    return found


def best_pair(sweeps: Sequence[dict[Pair, Yield]], slo_s: float) -> Pair | None:
    """The pair that keeps the SLO in each of these sweeps and yields the most in all; None if none does."""
    keeping = [pair for pair in sweeps[0] if all(found[pair].attained[slo_s] >= KEEPS for found in sweeps)]
    return max(keeping, key=lambda pair: sum(found[pair].tokens_per_s for found in sweeps), default=None)


def settled_after(limits: Sequence[Pair]) -> int:
    """Decisions up to the last with other limits than the final ones, or a batch size 10 % away."""
    last_batch_size, last_budget = limits[-1]
    settled = 0
    for step, (batch_size, budget) in enumerate(limits, start=1):
        if abs(batch_size - last_batch_size) > NEAR * last_batch_size or budget != last_budget:
            settled = step
    return settled


def arrived_after(intervals: Sequence[Tally], tokens_per_s: float, slo_s: float) -> int | None:
    """Decisions up to the last not followed by WINDOW seconds near this yield; None: not at the end.

    Decision n is made after interval n, so that intervals[n:] follow it; there are at least WINDOW of them.
    """
    for step in range(len(intervals) - WINDOW, -1, -1):
        window = Tally()
        for interval in intervals[step : step + WINDOW]:
            window.add(interval)
        if window.tokens_per_s < (1 - NEAR) * tokens_per_s or window.itl_mean_s > (1 + NEAR) * slo_s:
            return None if step == len(intervals) - WINDOW else step + 1
    return 0


def converge(loop: Loop, policy: str, slo_s: float, start: Pair, seed: int) -> Converged:
    """Run one local autoscaler from these limits on."""
    engine = _engine(loop, start, seed)
    autoscaler = load_local(policy)
    measured, limits, intervals, spent_s = Tally(), [], [], 0.0
    for second in range(loop.warm_up_s + loop.measured_s):
        interval = engine.run(1.0)
        intervals.append(interval)
        if second >= loop.warm_up_s:
            measured.add(interval)
        sample = engine.sample(interval, slo_s)
        begun_s = time.process_time()
        decision = autoscaler.decide(sample)
        spent_s += time.process_time() - begun_s
        engine.apply(decision)
        limits.append((decision.batch_size, decision.step_token_budget))
    return Converged(limits, intervals, measured, spent_s / len(limits) * 1e6)


def _engine(loop: Loop, pair: Pair, seed: int) -> SaturatedEngine:
    return SaturatedEngine(
        get_profile(loop.profile), batch_size=pair[0], step_token_budget=pair[1], seed=seed
    )
