"""After how much work each unit of a durable queue has been served, if nothing more comes.

The order is that of `chiron.policy.unit_order`: group by group, the late ones last. Within a group tenants
share by weight, so that a tenant which has been given x tokens for each unit of its weight is reached when
every other has been given as much, or all that it wanted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate

from chiron.policy.deadline_cells import DeadlineCells
from chiron.policy.work_units import WorkUnit


def work_until_served(
    units: Iterable[WorkUnit],
    cost: Callable[[WorkUnit], float],
    weight: Callable[[str], float],
    now_s: float,
) -> dict[Hashable, float]:
    """Unit → work until its last item has been handed out. O(n log n) for n units.

    Args:
        units: everything that waits for one model.
        cost: work that a unit is, > 0.
        weight: of a tenant, > 0.
        now_s: on the units' clock.
    """
    lines: dict[bool, DeadlineCells[list[WorkUnit]]] = {late: DeadlineCells(list) for late in (False, True)}
    for unit in units:
        line = lines[unit.deadline_s <= now_s]
        line.occupy(line.index(unit.deadline_s)).append(unit)
    served: dict[Hashable, float] = {}
    before = 0.0
    for line in lines.values():
        for run in line.runs():
            before = _share([unit for index in run for unit in line[index]], cost, weight, before, served)
    return served


def _share(
    group: Sequence[WorkUnit],
    cost: Callable[[WorkUnit], float],
    weight: Callable[[str], float],
    before: float,
    served: dict[Hashable, float],
) -> float:
    """Adds the units of one group; returns the work until all of it has been served."""
    tenants: dict[str, list[WorkUnit]] = {}
    for unit in sorted(group, key=lambda unit: (unit.priority, unit.accepted_s)):
        tenants.setdefault(unit.tenant, []).append(unit)
    works = {tenant: sum(map(cost, units)) for tenant, units in tenants.items()}
    weights = {tenant: weight(tenant) for tenant in tenants}
    # Tenants in the order in which they have all that they want.
    order = sorted(tenants, key=lambda tenant: works[tenant] / weights[tenant])
    levels = [works[tenant] / weights[tenant] for tenant in order]
    done = [0.0, *accumulate(works[tenant] for tenant in order)]
    total_weight = sum(weights.values())
    left = [total_weight, *(total_weight - gone for gone in accumulate(weights[t] for t in order))]
    for tenant, units in tenants.items():
        got = 0.0
        for unit in units:
            got += cost(unit)
            level = got / weights[tenant]
            full = bisect_right(levels, level)
            served[unit.key] = before + done[full] + max(0.0, left[full]) * level
    return before + done[-1]
