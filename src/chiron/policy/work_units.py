"""Units of a durable queue: items that nothing tells apart but their place."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from chiron.policy.deadline_cells import DeadlineCells
from chiron.policy.groups import RequestGroup


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Items that wait and that nothing tells apart but their place. Times are of one clock, in seconds."""

    key: Hashable
    tenant: str
    deadline_s: float
    """Absolute."""
    accepted_s: float
    priority: int
    """Among the tenant's units of one group: a lower value goes first."""
    items: int
    prompt_tokens: int
    """Sum over the items."""
    max_tokens: int
    """Most output tokens, sum over the items; 0: the model's limit."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One item that goes next."""

    key: Hashable
    tenant: str
    charged: float
    """Tokens that its tenant was charged; to be settled."""


def unit_groups(units: Iterable[WorkUnit]) -> tuple[RequestGroup, ...]:
    """Their items in groups of similar deadlines, the earliest first. O(n log n) for n units."""
    cells: DeadlineCells[list[WorkUnit]] = DeadlineCells(list)
    for unit in units:
        cells.occupy(cells.index(unit.deadline_s)).append(unit)
    return tuple(
        RequestGroup(
            min(unit.deadline_s for unit in found),
            sum(unit.items for unit in found),
            sum(unit.prompt_tokens for unit in found),
        )
        for run in cells.runs()
        for found in ([unit for index in run for unit in cells[index]],)
    )
