"""What routers and workers have counted for each model since the last snapshot.

Routers tell what arrived in each interval, workers what their answers add up to since they started. Times are
the controller's monotonic clock, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.policy.snapshots import Traffic
from chiron.v1 import cluster_pb2

_Finished = cluster_pb2.FinishedRequests


@dataclass(slots=True)
class _Counts:
    """One model's, since the last snapshot."""

    arrived_interactive: float = 0.0
    arrived_batch: float = 0.0
    interactive: _Finished = field(default_factory=_Finished)
    batch: _Finished = field(default_factory=_Finished)


@dataclass(slots=True)
class _Seen:
    """One instance's sums, as its last report had them."""

    incarnation: int
    interactive: _Finished = field(default_factory=_Finished)
    batch: _Finished = field(default_factory=_Finished)


class Demand:
    """Counts since the last snapshot, over all routers and workers.

    A router that was cut off tells at once what came in all that time. Of such a report the part counts that
    falls into the interval that runs, as if its requests had come evenly: the rest came in intervals that
    have been told, and told now it would look like a burst. A report may reach back by one report's usual
    length before the interval, because routers report at different moments; they are taken to report equally
    often.
    """

    def __init__(self, now: float) -> None:
        """Begins to count at `now`; what came before belongs to nobody here."""
        self._models: dict[str, _Counts] = {}
        self._seen: dict[str, _Seen] = {}
        self._from_s = now
        self._to_s: float | None = None
        self._shortest_s = math.inf
        """Shortest time that a report has covered: the usual length of one."""
        self._reach_s = 0.0
        """How far before the interval a report may begin and count whole; in the first one not at all."""

    def hear_router(self, report: control_pb2.RouterReport, now: float) -> None:
        """A router's report has come."""
        covers_s = report.interval_ms / 1e3
        if self._to_s is None:
            self._from_s = max(self._from_s, now - covers_s)
        self._to_s = now
        share = 1.0
        if covers_s > 0:
            self._shortest_s = min(self._shortest_s, covers_s)
            share = min(1.0, (now - self._from_s + self._reach_s) / covers_s)
        for demand in report.demand:
            counts = self._models.setdefault(demand.model, _Counts())
            counts.arrived_interactive += share * demand.arrived.interactive
            counts.arrived_batch += share * demand.arrived.batch

    def hear_agent(self, statuses: Iterable[cluster_pb2.InstanceStatus]) -> None:
        """An agent's report has come.

        Of an instance that is heard for the first time the present sums are where counting begins; of a later
        incarnation of it, zero.
        """
        for status in statuses:
            seen = self._seen.get(status.instance_id)
            if seen is None:
                seen = self._seen[status.instance_id] = _Seen(status.incarnation)
                counts = _Counts()
            else:
                counts = self._models.setdefault(status.model, _Counts())
            if seen.incarnation != status.incarnation:
                seen = self._seen[status.instance_id] = _Seen(status.incarnation)
            if status.HasField("load"):
                _count(counts.interactive, seen.interactive, status.load.finished_interactive)
                _count(counts.batch, seen.batch, status.load.finished_batch)

    def forget_others(self, instance_ids: Collection[str]) -> None:
        """Keeps the sums of these instances alone: the others are gone."""
        for gone in self._seen.keys() - instance_ids:
            del self._seen[gone]

    def take(self, queued_interactive: Mapping[str, int]) -> Mapping[str, Traffic]:
        """Model → its traffic since the last call; a new interval begins.

        The interval reaches from the newest router's report of the last time to the newest one now, so that
        intervals neither overlap nor leave gaps however many routers report.

        Args:
            queued_interactive: model → interactive requests that wait in the routers now; models without any
                traffic are in it too.
        """
        interval_s = 0.0
        if self._to_s is not None:
            interval_s = self._to_s - self._from_s
            self._from_s, self._reach_s = self._to_s, self._shortest_s
        models, self._models = self._models, {}
        return {
            name: _traffic(models.get(name) or _Counts(), queued, interval_s)
            for name, queued in queued_interactive.items()
        }


def _count(into: _Finished, before: _Finished, now: _Finished) -> None:
    """Adds what has come since `before`, and brings that up to date.

    Within an incarnation sums only grow; where one is smaller than before, counting goes on from there.
    """
    into.requests += max(0, now.requests - before.requests)
    into.output_tokens += max(0, now.output_tokens - before.output_tokens)
    into.prompt_tokens += max(0, now.prompt_tokens - before.prompt_tokens)
    into.output_tokens_sq += max(0.0, now.output_tokens_sq - before.output_tokens_sq)
    into.service_ms += max(0.0, now.service_ms - before.service_ms)
    before.CopyFrom(now)


def _traffic(counts: _Counts, queued_interactive: int, interval_s: float) -> Traffic:
    interactive, batch = counts.interactive, counts.batch
    return Traffic(
        interval_s=interval_s,
        arrived_interactive=round(counts.arrived_interactive),
        arrived_batch=round(counts.arrived_batch),
        queued_interactive=queued_interactive,
        finished_interactive=interactive.requests,
        finished_batch=batch.requests,
        finished_output_tokens=interactive.output_tokens + batch.output_tokens,
        finished_prompt_tokens=interactive.prompt_tokens + batch.prompt_tokens,
        finished_service_s=(interactive.service_ms + batch.service_ms) / 1e3,
        finished_output_tokens_sq=interactive.output_tokens_sq + batch.output_tokens_sq,
        finished_batch_output_tokens=batch.output_tokens,
        finished_batch_prompt_tokens=batch.prompt_tokens,
        finished_batch_service_s=batch.service_ms / 1e3,
        finished_batch_output_tokens_sq=batch.output_tokens_sq,
    )
