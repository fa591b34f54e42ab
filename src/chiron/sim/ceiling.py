"""The physical ceiling: the best steady throughput per GPU that one engine reaches under an ITL SLO.

Every (batch size, step-token budget) pair of a grid is run on the engine model with a queue that never
empties; no policy can serve more of the same requests per GPU than the best pair. What a static pair reaches
is printed beside every headline, because a gain over a baseline beyond that ratio cannot come from batching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.engine import EngineModel, EngineRequest, Profile
from chiron.sim.oracle import unit_costs, work_gpu_s

BATCH_SIZES = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 1024)
STEP_TOKEN_BUDGETS = (256, 384, 512, 768, 1024, 2048, 4096, 8192)
STATIC = (256, 2048)
"""The pair that static baselines use: vLLM's usual defaults."""
ATTAINMENT = 0.99
"""Share of requests whose mean ITL must keep the SLO."""
_WAITING = 64
"""Requests kept in the engine's queue."""


@dataclass(frozen=True, slots=True)
class SteadyState:
    """What one engine does with a queue that never empties."""

    batch_size: int
    step_token_budget: int
    requests_per_gpu_s: float
    tokens_per_gpu_s: float
    """Output tokens per second and GPU."""
    itl_ms: NDArray[np.float64]
    """Mean ITL of each measured request with two output tokens or more, ascending."""

    def attained(self, itl_slo_s: float) -> float:
        """Share of the requests whose mean ITL is within the SLO."""
        within = int(np.searchsorted(self.itl_ms, itl_slo_s * 1e3, side="right"))
        return within / len(self.itl_ms) if len(self.itl_ms) else 1.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The best pair under one SLO."""

    itl_slo_s: float
    best: SteadyState | None
    """None: no pair of the grid keeps the SLO."""
    static: SteadyState
    """What the pair does that static policies keep."""
    bound_requests_per_gpu_s: float
    """At the cost of the lower bound (`chiron.sim.oracle`), for the same requests."""

    @property
    def gain(self) -> float | None:
        """Best requests per GPU over the static pair's; None when no pair keeps the SLO."""
        return None if self.best is None else self.best.requests_per_gpu_s / self.static.requests_per_gpu_s


def steady_state(
    profile: Profile,
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    batch_size: int,
    step_token_budget: int,
) -> SteadyState:
    """Serves the requests in order and measures after the first third of them has finished.

    Throughput is counted until the last request leaves the queue. Raises ValueError unless there are three
    times as many requests as slots and queue places: fewer show no steady state.
    """
    count = len(prompt_tokens)
    if count < 3 * (batch_size + _WAITING):
        raise ValueError(
            f"requests: {count} are too few for a batch size of {batch_size}, "
            f"which needs {3 * (batch_size + _WAITING)}"
        )
    engine = EngineModel(
        profile, batch_size=batch_size, step_token_budget=step_token_budget, report_emissions=False
    )
    first_s = np.full(count, np.nan)
    itl_ms: list[float] = []
    now_s = start_s = 0.0
    submitted = finished = start_tokens = 0
    measuring = False
    while True:
        while submitted < count and engine.waiting < _WAITING:
            engine.submit(
                EngineRequest(submitted, int(prompt_tokens[submitted]), int(output_tokens[submitted]))
            )
            submitted += 1
        outcome = engine.advance(now_s)
        if outcome is None or submitted == count:
            break
        now_s += outcome.duration_s
        first_s[outcome.first_tokens] = now_s
        finished += len(outcome.finished)
        if measuring:
            itl_ms += [
                float((now_s - first_s[each]) * 1e3 / (output_tokens[each] - 1))
                for each in outcome.finished
                if output_tokens[each] > 1
            ]
        elif finished >= count // 3:
            measuring, start_s, start_tokens = True, now_s, engine.totals.emitted_tokens
    # Tokens over the mean output, not finished requests: those that happen to end in the window vary more.
    tokens_per_gpu_s = (engine.totals.emitted_tokens - start_tokens) / ((now_s - start_s) * profile.gpus)
    return SteadyState(
        batch_size,
        step_token_budget,
        tokens_per_gpu_s / float(output_tokens.mean()),
        tokens_per_gpu_s,
        np.sort(np.array(itl_ms)),
    )


def ceilings(
    profile: Profile,
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    itl_slos_s: Sequence[float],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[int] = STEP_TOKEN_BUDGETS,
    static_pair: tuple[int, int] = STATIC,
    progress: Callable[[int, int], None] | None = None,
) -> list[Ceiling]:
    """The best pair of the grid under each SLO, all pairs serving the same requests.

    progress: called with (pairs done, pairs in all). Raises ValueError for too few requests.
    """
    pairs = [(batch_size, budget) for batch_size in batch_sizes for budget in budgets]
    if static_pair not in pairs:
        pairs.append(static_pair)
    states: list[SteadyState] = []
    for number, (batch_size, budget) in enumerate(pairs, start=1):
        states.append(steady_state(profile, prompt_tokens, output_tokens, batch_size, budget))
        if progress is not None:
            progress(number, len(pairs))
    static = next(state for state in states if (state.batch_size, state.step_token_budget) == static_pair)
    bound = 1 / float(work_gpu_s(unit_costs(profile), prompt_tokens, output_tokens).mean())
    return [Ceiling(slo, _best(states, slo), static, bound) for slo in itl_slos_s]


def _best(states: Sequence[SteadyState], itl_slo_s: float) -> SteadyState | None:
    keeping = [state for state in states if state.attained(itl_slo_s) >= ATTAINMENT]
    return max(keeping, key=lambda state: state.requests_per_gpu_s, default=None)
