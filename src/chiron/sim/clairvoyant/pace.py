"""How fast an instance works at each batch size, from the true step times and the lengths of all requests.

Work is counted in seconds of one instance at the unit costs of the lower bound (`chiron.sim.oracle`), so that
no instance does more than one of them a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.engine.step_time import step_time_table
from chiron.sim.oracle import unit_costs, work_gpu_s
from chiron.sim.settings import SimModel

_BUDGET_STEP = 16
"""Step-token budgets are multiples of it: fine enough to hit the edges of the step time's staircase."""
_SLOTS = 1.25
"""Slots per request that fills a step, so that one is always there to take the tokens of another's end."""
_ITL_SHARE = 0.92
"""Of the ITL SLO in a full batch: single requests are slower than the mean."""


@dataclass(frozen=True, slots=True)
class Pace:
    """One model's instances at work."""

    share: tuple[float, ...]
    """Work per second with so many running requests, from none on; it never falls."""
    full_itl_s: float
    """Time between tokens in a full batch."""
    batch_size: int
    """With which instances do the most under the ITL SLO, together with the budget."""
    step_token_budget: int

    def work_per_s(self, running: float) -> float:
        """Work per second of an instance with so many running requests."""
        share = self.share
        return share[int(running)] if running < len(share) else share[-1]


@dataclass(frozen=True, slots=True)
class _Mix:
    """What a token costs in a steady mix of requests.

    A step holds a token of each running request and their part of the prompts that are to come; attention
    reads what a request has on average behind it, long outputs weighing by their length.
    """

    model: SimModel
    factor: float
    """On step times."""
    context: float
    """Tokens that a decoded one reads, on average."""
    tokens_per_running: float
    """Of a step, prompts included, per running request."""
    emitted_per_running: float
    work_per_token_s: float
    """Per output token, its prompt's part included."""

    def step_s(self, tokens: int, running: float) -> float:
        profile = self.model.profile
        read_s = profile.kv_read_s_per_token * running * self.context
        return (step_time_table(profile.step_time_ms).seconds(max(1, tokens)) + read_s) * self.factor

    def share(self, tokens: int, running: float) -> float:
        emitted = running * self.emitted_per_running
        return min(1.0, emitted * self.work_per_token_s / self.step_s(tokens, running))


def pace_of(
    model: SimModel,
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    step_time_factor: float,
) -> Pace:
    """The pace of instances that serve these requests in a steady mix, with the best limits."""
    mix = _mix(model, prompt_tokens, output_tokens, step_time_factor)
    profile = model.profile
    most = min(model.max_batch_size, int(profile.kv_capacity_tokens / (mix.context + profile.block_size)))
    slots, budget, full = 1, model.max_step_token_budget, 0.0
    for limit in range(_BUDGET_STEP, model.max_step_token_budget + 1, _BUDGET_STEP):
        tokens, running = limit, limit / mix.tokens_per_running
        size = min(most, max(1, round(_SLOTS * running)))
        if running > most:
            # All slots together do not fill such a step, which has room for prompts then.
            running, tokens = float(most), round(most * mix.tokens_per_running)
        itl_s = mix.step_s(tokens, size) / mix.emitted_per_running
        if itl_s <= _ITL_SHARE * model.itl_slo_s and mix.share(tokens, running) > full:
            slots, budget, full = size, limit, mix.share(tokens, running)
    share = [0.0]
    for running in range(1, slots + 1):
        tokens = round(running * mix.tokens_per_running)
        share.append(max(share[-1], mix.share(tokens, running)) if tokens < budget else max(full, share[-1]))
    full_itl_s = mix.step_s(budget, slots) / mix.emitted_per_running
    return Pace(tuple(share), full_itl_s, slots, budget)


def _mix(
    model: SimModel, prompt_tokens: NDArray[np.int32], output_tokens: NDArray[np.int32], factor: float
) -> _Mix:
    i, o = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64)
    decoded = float(np.maximum(o - 1, 1).sum())
    per_step, positions = 1.0, 1
    if model.profile.speculation is not None:
        per_step = model.profile.speculation.tokens_per_step
        positions = 1 + model.profile.speculation.draft_tokens
    work_s = float(work_of(model, prompt_tokens, output_tokens, factor).sum())
    return _Mix(
        model,
        factor,
        context=float(((o - 1) * i + (o - 1) * (o - 2) / 2).sum()) / decoded,
        tokens_per_running=positions + per_step * float(i.sum() / o.sum()),
        emitted_per_running=per_step,
        work_per_token_s=work_s / float(o.sum()),
    )


def work_of(
    model: SimModel,
    prompt_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
    step_time_factor: float,
) -> NDArray[np.float64]:
    """Each request's work, in seconds of one instance at the lower bound's costs."""
    profile = model.profile
    work_s = work_gpu_s(unit_costs(profile), prompt_tokens, output_tokens)
    return np.asarray(work_s * (step_time_factor / profile.gpus), dtype=np.float64)
