"""What no policy can beat: a lower bound on GPU time from the step table alone.

GPU-seconds >= sum over requests of a (i + o - 1) + c [(o - 1) i + (o - 1)(o - 2) / 2], with i and o the
input and output tokens, a = min over m of step time(m) / m, and c the time to read one token's keys and
values. The first output token comes with the prompt's last chunk, so that i + o - 1 tokens are computed;
output token number k + 1 is decoded by attention over i + k - 1 earlier tokens, k = 1 ... o - 1. The bound
ignores SLOs, load times and whole GPUs. It holds without speculative decoding and without prefix hits;
`oracle_lb_gpu_s` loosens it for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.engine import Profile
from chiron.engine.step_time import DENSE_TOKENS, step_time_table
from chiron.sim.settings import SimSettings
from chiron.sim.workload import Workload


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What the cheapest token and the reading of one cached token cost, in GPU-seconds."""

    per_token_gpu_s: float
    """a: the least step time per token over all step sizes, times the instance's GPUs."""
    per_kv_token_gpu_s: float
    """c: of one instance, times its GPUs."""


def unit_costs(profile: Profile) -> UnitCosts:
    """The costs of a profile. Beyond the table's end, the line's slope bounds the time per token."""
    table = step_time_table(profile.step_time_ms)
    per_token = [table.seconds(tokens) / tokens for tokens in range(1, DENSE_TOKENS + 1)]
    slope = table.seconds(DENSE_TOKENS + 1) - table.seconds(DENSE_TOKENS)
    least = min(*per_token, slope) if slope > 0 else min(per_token)
    return UnitCosts(least * profile.gpus, profile.kv_read_s_per_token * profile.gpus)


def work_gpu_s(
    costs: UnitCosts, prompt_tokens: NDArray[np.int32], output_tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Each request's lower bound, in GPU-seconds."""
    i, o = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64)
    read = (o - 1) * i + (o - 1) * (o - 2) / 2
    return np.asarray(costs.per_token_gpu_s * (i + o - 1) + costs.per_kv_token_gpu_s * read)


def oracle_lb_gpu_s(settings: SimSettings, workload: Workload) -> float:
    """The bound for a whole workload, in GPU-seconds, as if every request is served.

    A prompt block whose hash another request had counts once. Speculative decoding reads the keys and values
    once for up to 1 + drafts tokens, so that c is divided by that.
    """
    return oracle_served_gpu_s(settings, workload, np.ones(len(workload), dtype=np.bool_))


def oracle_served_gpu_s(settings: SimSettings, workload: Workload, served: NDArray[np.bool_]) -> float:
    """The bound for those requests of a workload that `served` marks: no run that finished them used less.

    A prompt block that any other request has as well costs nothing: that one may have computed it, in the
    warm-up for example, where no GPU time counts, or before it failed.
    """
    total = 0.0
    computed = _computed_prompt(settings, workload, served)
    for index, model in enumerate(settings.models):
        mine = served & (workload.model == index)
        costs = unit_costs(model.profile)
        positions = 1 if model.profile.speculation is None else 1 + model.profile.speculation.draft_tokens
        prompt, output = workload.prompt_tokens[mine], workload.output_tokens[mine]
        whole = work_gpu_s(costs, prompt, output)
        token_work = costs.per_token_gpu_s * (prompt.astype(np.float64) + output - 1)
        saved = costs.per_token_gpu_s * (prompt - computed[mine])
        total += float((token_work - saved + (whole - token_work) / positions).sum())
    return total * settings.step_time_factor


def _computed_prompt(
    settings: SimSettings, workload: Workload, served: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Prompt tokens that each served request at least computes: one, and every full block of no other's."""
    prompt = workload.prompt_tokens.astype(np.int64)
    if workload.prefix is None:
        return prompt
    seen: list[set[int]] = [set() for _ in settings.models]
    for request in np.flatnonzero(~served):
        seen[workload.model[request]].update(workload.prefix[request])
    for request in np.flatnonzero(served):
        blocks = workload.prefix[request]
        model = int(workload.model[request])
        known = 0
        while known < len(blocks) and blocks[known] in seen[model]:
            known += 1
        seen[model].update(blocks)
        prompt[request] = max(1, int(prompt[request]) - known * settings.models[model].profile.block_size)
    return prompt
