"""Requests of one source, and the workload that several sources make together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import RequestClass
from chiron.sim.workload import Workload


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests of one class for one model, in any order."""

    model: int
    """Index into the simulation's models."""
    request_class: RequestClass
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    deadline_in_s: float | NDArray[np.float64] = math.inf
    """From each arrival; inf for interactive requests."""
    prefix: tuple[tuple[int, ...], ...] | None = None
    refuse_late: bool = False
    """Callers ask to be refused when their SLO cannot be met."""
    tenant: str = ""
    """Who pays."""

    def __len__(self) -> int:
        return len(self.arrival_s)


def fit_to_context(
    prompt_tokens: NDArray[np.int32], output_tokens: NDArray[np.int32], max_context_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Lengths that an engine takes, as a door makes them that truncates, and how many it changed.

    The output is cut first, to what the prompt leaves; a prompt that leaves nothing is cut by what one token
    of output needs.
    """
    prompt = np.minimum(prompt_tokens, max_context_tokens - 1).astype(np.int32)
    output = np.minimum(output_tokens, max_context_tokens - prompt).astype(np.int32)
    changed = (prompt != prompt_tokens) | (output != output_tokens)
    return prompt, output, int(np.count_nonzero(changed))


def merge(demands: Sequence[Demand]) -> Workload:
    """All requests by arrival; those that arrive together stay in the order of their sources."""
    arrival = np.concatenate([demand.arrival_s for demand in demands])
    order = np.argsort(arrival, kind="stable")
    deadline = np.concatenate(
        [np.broadcast_to(demand.arrival_s + demand.deadline_in_s, len(demand)) for demand in demands]
    )
    prefix = None
    if any(demand.prefix is not None for demand in demands):
        given = [entry for demand in demands for entry in (demand.prefix or ((),) * len(demand))]
        prefix = tuple(given[at] for at in order)
    tenant = None
    if any(demand.tenant for demand in demands):
        names = [demand.tenant for demand in demands for _ in range(len(demand))]
        tenant = tuple(names[at] for at in order)
    return Workload(
        arrival_s=arrival[order],
        prompt_tokens=np.concatenate([demand.prompt_tokens for demand in demands])[order].astype(np.int32),
        output_tokens=np.concatenate([demand.output_tokens for demand in demands])[order].astype(np.int32),
        request_class=_repeat(demands, [int(demand.request_class) for demand in demands])[order].astype(
            np.int8
        ),
        model=_repeat(demands, [demand.model for demand in demands])[order].astype(np.int16),
        deadline_s=deadline[order],
        prefix=prefix,
        refuse_late=_repeat(demands, [demand.refuse_late for demand in demands])[order].astype(np.bool_)
        if any(demand.refuse_late for demand in demands)
        else None,
        tenant=tenant,
    )


def _repeat(demands: Sequence[Demand], values: Sequence[int]) -> NDArray[np.int64]:
    return np.repeat(np.array(values, dtype=np.int64), [len(demand) for demand in demands])
