"""Which running requests move where: the protocol of planners, and the one of Llumnix.

After Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving" (OSDI 2024), section 4.4:
migration goes by the freeness of algorithm 1, in which of all requests that wait the first alone demands
blocks, and an instance that terminates has a request that demands infinitely much. So one rule balances load,
makes room for a prompt that fits nowhere, and empties instances. Defaults are the published code's: instances
are looked at every 50 ms, and freeness 3 divides those that give from those that take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class MigrationView(NamedTuple):
    """One instance as a planner sees it, one message delay ago."""

    instance_id: str
    draining: bool
    """It is to end, or to sleep; otherwise it is ready."""
    batch_size: int
    running: int
    """Requests that hold a slot."""
    waiting: int
    """Requests in its queue, those on their way to it included."""
    first_waiting_blocks: int
    """KV blocks that the first of its queue needs; 0: none waits."""
    kv_free_blocks: int


class Movable(NamedTuple):
    """A decoding request, as its own instance sees it."""

    request_id: int
    priority: int
    """Lower is more urgent."""
    tokens: int
    """In its KV cache."""


class Pair(NamedTuple):
    """Two instances: requests move from the first to the second, one after another."""

    source: str
    destination: str


class MigrationPlanner(Protocol):
    """Decides for one model's instances; keeps no clock and does no I/O."""

    @property
    def interval_s(self) -> float:
        """From one look at the instances to the next."""
        ...

    def pairs(self, instances: Sequence[MigrationView]) -> Sequence[Pair]:
        """Return who gives to whom until the next decision, each instance in one pair at most."""
        ...

    def choose(self, requests: Sequence[Movable]) -> int | None:
        """Return which of a source's requests moves next; None: none. Decided at the source."""
        ...


@dataclass(frozen=True, slots=True)
class MigrationThresholds:
    """Which instances give requests away and which take them. Raises ValueError by field."""

    migrate_out_below: float = 3.0
    """Freeness below which an instance gives."""
    migrate_in_above: float = 3.0
    """Freeness above which an instance takes."""
    migration_interval_s: float = 0.05

    def __post_init__(self) -> None:
        if not self.migrate_out_below <= self.migrate_in_above:
            raise ValueError(
                f"migrate_out_below: must not be above migrate_in_above = {self.migrate_in_above:g}, "
                f"not {self.migrate_out_below:g}"
            )
        if not 0.001 <= self.migration_interval_s < math.inf:
            raise ValueError(
                f"migration_interval_s: must be at least 0.001, not {self.migration_interval_s:g}"
            )


class FreenessPairing:
    """Pairs the instance with the least freeness with the one with the most, and so on.

    A destination must have a free slot too: a static batch size may bind before the KV cache does, which it
    does not in the paper's setting.
    """

    def __init__(self, thresholds: MigrationThresholds | None = None) -> None:
        self._thresholds = thresholds or MigrationThresholds()

    @property
    def interval_s(self) -> float:
        """See `MigrationPlanner.interval_s`."""
        return self._thresholds.migration_interval_s

    def pairs(self, instances: Sequence[MigrationView]) -> list[Pair]:
        """See `MigrationPlanner.pairs`. Nothing is remembered: the next decision may tell other pairs."""
        limits = self._thresholds
        sources: list[tuple[float, str]] = []
        destinations: list[tuple[float, str]] = []
        for view in instances:
            free = migration_freeness(view)
            if free < limits.migrate_out_below:
                if view.running:
                    sources.append((free, view.instance_id))
            elif free > limits.migrate_in_above and view.running + view.waiting < view.batch_size:
                destinations.append((-free, view.instance_id))
        if not sources or not destinations:
            return []
        sources.sort()
        destinations.sort()
        return [Pair(source, to) for (_, source), (_, to) in zip(sources, destinations, strict=False)]

    def choose(self, requests: Sequence[Movable]) -> int | None:
        """See `MigrationPlanner.choose`: of the least urgent the shortest, which is moved soonest."""
        if not requests:
            return None
        return min(requests, key=lambda each: (-each.priority, each.tokens, each.request_id)).request_id


def migration_freeness(view: MigrationView) -> float:
    """Free KV blocks less what the first that waits needs, over the requests that run and that one.

    Infinite for an instance with nothing to do; minus infinity for one that drains.
    """
    if view.draining:
        return -math.inf
    batch = view.running + (view.first_waiting_blocks > 0)
    return (view.kv_free_blocks - view.first_waiting_blocks) / batch if batch else math.inf
