"""Batch instances that go while batch requests still wait (reconstructed).

A full instance does the same work for a GPU-hour whenever it runs. What is lost is capacity that nobody uses:
what interactive work spares, once a backlog has been done before it had to be. So a batch instance goes as
soon as the others, with what is spared, are done in time without it. The margin is a share of the work that
is left, and larger while those that have ended are few beside those that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chiron.policy.decisions import Alternative
from chiron.policy.fleet.backpressure import BatchSupply, GroupWork
from chiron.policy.fleet.batch import NEAR_LOADS, assess_batch, batch_supply, group_work
from chiron.policy.fleet.retire import drains_soonest
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.fleet.weighed import keep_for_deadlines
from chiron.policy.snapshots import FleetInstance, ModelFleet

_YOUNG_LOADS = 2.0
_FORESEEN_LOADS = 200.0
"""For so long what interactive work spares is taken to stay, in load times."""


@dataclass(frozen=True, slots=True)
class Taper:
    """Who may go, and what else was weighed."""

    chosen: tuple[FleetInstance, ...] = ()
    weighed: tuple[Alternative, ...] = ()


def taper_batch(model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings) -> Taper:
    """The batch instances without which every group is done when it is due, with a margin.

    Nobody while a batch instance loads or is younger than two load times: what was added for the deadlines
    first shows what it makes. O(batch instances x (instances + groups)).
    """
    if not model.backlog or not supply.batch or supply.loading_batch:
        return Taper()
    if min(instance.phase_age_s for instance in supply.batch) < _YOUNG_LOADS * model.load_time_s:
        return Taper()
    # As long as few have ended, the long ones are not among them.
    margin = settings.taper_margin + supply.running_batch / max(1, state.batch_finished)
    foreseen_s = _FORESEEN_LOADS * model.load_time_s
    groups = [
        GroupWork(min(group.due_in_s, foreseen_s), group.work_tokens * (1 + margin))
        for group in group_work(model, supply, state, settings, cautious=True)
    ]
    chosen: list[FleetInstance] = []
    weighed: tuple[Alternative, ...] = ()
    for count in range(1, len(supply.batch) + 1):
        going = drains_soonest(supply.batch, count)
        left = replace(supply, batch=[each for each in supply.batch if each not in going])
        made = batch_supply(model, left, state, settings)
        tightest = _tightest(groups, made)
        told = made.tokens_by(tightest.due_in_s)
        if told < tightest.work_tokens:
            break
        chosen = going
        weighed = (keep_for_deadlines(tightest.work_tokens, told, tightest.due_in_s),)
    return Taper(tuple(chosen), weighed)


def not_spared_for_batch(
    model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings, now_s: float, count: int
) -> int:
    """Of `count` interactive instances, those that may go without a batch instance that is needed instead.

    None where a deadline is near: what waits is done first, and soon is where an instance is one too many.
    """
    if model.backlog and model.backlog[0].deadline_in_s <= NEAR_LOADS * model.load_time_s:
        return 0
    while count and model.backlog:
        slots = supply.slots - count * supply.slots_each
        left = replace(supply, interactive=supply.interactive[count:], slots=slots)
        if not assess_batch(model, left, state, settings, now_s).missing:
            break
        count -= 1
    return count


def _tightest(groups: Sequence[GroupWork], supply: BatchSupply) -> GroupWork:
    return min(groups, key=lambda group: supply.tokens_by(group.due_in_s) - group.work_tokens)
