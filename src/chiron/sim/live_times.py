"""When things happened on a live cluster that was recorded, so that its simulation may do them then too."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LiveTimes:
    """Taken over from a recording, in seconds from the simulation's zero; scenarios have none of it."""

    ticks_s: tuple[float, ...] = ()
    """When the global autoscaler decided, in order; empty, or after the last: every `tick_s`."""
    router_reports_s: tuple[float, ...] = ()
    """When the router made each report, in order; empty, or after the last: every interval."""
    node_reports_s: tuple[tuple[float, ...], ...] = ()
    """Likewise of each node, by number; empty: all report with the router. With these, a report tells of an
    instance what its last sample counted, as live ones do; without, what it counts by then."""
    samples_s: tuple[float, ...] = ()
    """When instances count what runs and what they have made since the last time, in order; empty, or after
    the last: every `local_interval_s`."""
    loads_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Model → how long the first instances that start take to load, in the order of their start; further ones
    take the model's load time."""
    known_loads_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Model → load times that were measured before."""
    presumed_load_s: float | None = None
    """What autoscalers reckon with where none has been measured; None: the model's load time."""
    batch_send_s: float = 0.0
    """Time between two batch requests that the router sends; 0: it sends at once all that find a slot."""
    drain_notice_s: float = 0.0
    """For so long routers know that an instance is to stop before it is told: what they have sent there still
    finds it open, and its GPUs stay with it."""


def next_time(times: Sequence[float], now: float, interval_s: float) -> float:
    """The first of these times after `now`; after the last of them, `interval_s` later."""
    place = bisect_right(times, now)
    return times[place] if place < len(times) else now + interval_s
