"""Which instances go first (reconstructed): those whose drain ends soonest and wastes least."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from chiron.policy.snapshots import FleetInstance
from chiron.policy.words import Phase


def drains_soonest(instances: Iterable[FleetInstance], count: int) -> list[FleetInstance]:
    """The `count` cheapest to lose: loading ones, then the fewest requests to finish, then the youngest."""
    return heapq.nsmallest(count, instances, key=drain_cost)


def drain_cost(instance: FleetInstance) -> tuple[bool, int, int, float, str]:
    """What instances are compared by: serving, requests, interactive ones among them, age, id."""
    interactive = instance.running_interactive + instance.waiting_interactive
    batch = instance.running_batch + instance.waiting_batch
    return (
        instance.phase is not Phase.LOADING,
        interactive + batch,
        interactive,
        instance.phase_age_s,
        instance.instance_id,
    )
