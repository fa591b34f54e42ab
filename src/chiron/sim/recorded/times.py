"""When a live cluster decided, reported and loaded, from its snapshots and its decisions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from chiron.sim.live_times import LiveTimes
from chiron.sim.recorded.cluster import LiveCluster
from chiron.sim.recorded.requests import RecordedRequest
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_SAME_S = 0.05
"""Two times that are closer are the same, seen twice."""
_BURST_S = 0.01
"""Batch requests that reach their workers closer to each other leave as fast as the router sends them."""


def live_times(
    cluster: LiveCluster,
    requests: Iterable[RecordedRequest],
    zero: float,
    *,
    presumed_load_s: float | None,
    drain_notice_s: float,
) -> LiveTimes:
    """What the simulation takes over.

    Args:
        cluster: as it was.
        requests: that it served.
        zero: wall-clock time of the simulation's zero, in seconds since 1970.
        presumed_load_s: what its autoscaler reckons with where no load has been measured; None: unknown.
        drain_notice_s: see LiveTimes.
    """
    snapshots = cluster.snapshots
    nodes = sorted(node.node_id for node in cluster.first.nodes if node.gpus)
    routers = [router.router_id for router in cluster.first.routers]
    return LiveTimes(
        ticks_s=_regular(_ticks(snapshots), zero),
        router_reports_s=_regular(_reports_of_router(snapshots, routers[0]), zero) if routers else (),
        node_reports_s=tuple(_regular(_reports_of_node(snapshots, node), zero) for node in nodes),
        samples_s=_regular(_samples(snapshots), zero),
        loads_s={model: tuple(took for _, took in times) for model, times in cluster.loads.items()},
        known_loads_s=_known_loads(cluster),
        presumed_load_s=presumed_load_s,
        batch_send_s=_batch_send_s(requests),
        drain_notice_s=drain_notice_s,
    )


def interval_of(times_s: Sequence[float]) -> float | None:
    """The usual time between two; None: there are too few."""
    gaps = [later - earlier for earlier, later in pairwise(times_s)]
    return median(gaps) if gaps else None


def _ticks(snapshots: Iterable[pb.ClusterSnapshot]) -> Iterable[float]:
    for snapshot in snapshots:
        ages = [one.autoscale.tick_age_ms for one in snapshot.models if one.autoscale.tick_age_ms]
        if ages:
            yield _wall(snapshot) - min(ages) / 1e3


def _reports_of_router(snapshots: Iterable[pb.ClusterSnapshot], router_id: str) -> Iterable[float]:
    for snapshot in snapshots:
        for router in snapshot.routers:
            if router.router_id == router_id:
                yield _wall(snapshot) - router.report_age_ms / 1e3


def _reports_of_node(snapshots: Iterable[pb.ClusterSnapshot], node_id: str) -> Iterable[float]:
    for snapshot in snapshots:
        for node in snapshot.nodes:
            if node.node_id == node_id:
                yield _wall(snapshot) - node.report_age_ms / 1e3


def _samples(snapshots: Sequence[pb.ClusterSnapshot]) -> Iterable[float]:
    """Of the instance that came first: each has a phase of its own, and one stands for all."""
    ready = [one.instance_id for one in snapshots[0].instances if one.state == types_pb2.INSTANCE_STATE_READY]
    for snapshot in snapshots:
        report_ages_ms = {node.node_id: node.report_age_ms for node in snapshot.nodes}
        for one in snapshot.instances:
            if ready and one.instance_id == ready[0] and one.load_age_ms and one.node_id in report_ages_ms:
                # The report told how old the load was by then.
                yield _wall(snapshot) - (report_ages_ms[one.node_id] + one.load_age_ms) / 1e3


def _batch_send_s(requests: Iterable[RecordedRequest]) -> float:
    """Usual time between two that reach workers in a burst; 0: nobody knows.

    What slows a router down there is its own work on each: while it sends to one, another becomes ready.
    """
    taken = sorted(
        one.arrived + one.took_s - one.served_s
        for one in requests
        if one.batch and math.isfinite(one.took_s - one.served_s)
    )
    gaps = [gap for earlier, later in pairwise(taken) if (gap := later - earlier) < _BURST_S]
    return median(gaps) if gaps else 0.0


def _regular(walls: Iterable[float], zero: float) -> tuple[float, ...]:
    """From zero on, in order, each once; those that no snapshot shows are where they are to be expected."""
    seen: list[float] = []
    for wall in sorted(walls):
        if not seen or wall - seen[-1] > _SAME_S:
            seen.append(wall)
    interval_s = interval_of(seen)
    if interval_s is None:
        return ()
    times = seen[:1]
    while times[0] - interval_s > zero:
        times.insert(0, times[0] - interval_s)
    for earlier, later in pairwise(seen):
        missed = max(1, round((later - earlier) / interval_s))
        times += [earlier + (later - earlier) * number / missed for number in range(1, missed + 1)]
    return tuple(wall - zero for wall in times if wall > zero)


def _known_loads(cluster: LiveCluster) -> Mapping[str, tuple[float, ...]]:
    """Of the instances that were ready when the recording began: from placed to ready, where a decision
    tells it, else how long the engine took."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in cluster.first.instances:
        if one.state != types_pb2.INSTANCE_STATE_READY:
            continue
        took_s = cluster.placed_to_ready_s.get(one.instance_id, one.load.load_ms / 1e3)
        if took_s > 0:
            found[one.model].append(took_s)
    return {model: tuple(times) for model, times in found.items()}


def _wall(snapshot: pb.ClusterSnapshot) -> float:
    return float(snapshot.time.ToNanoseconds() / 1e9)
