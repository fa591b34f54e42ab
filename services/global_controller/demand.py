"""What routers and workers have counted for each model since the last snapshot.

Routers tell what arrived in each interval, workers what their answers add up to since they started. Times are
the controller's monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.policy.snapshots import Traffic
from chiron.v1 import cluster_pb2

_Finished = cluster_pb2.FinishedRequests


@dataclass(slots=True)
class _Counts:
    """One model's, since the last snapshot."""

    arrived_interactive: int = 0
    arrived_batch: int = 0
    interactive: _Finished = field(default_factory=_Finished)
    batch: _Finished = field(default_factory=_Finished)


@dataclass(slots=True)
class _Seen:
    """One instance's sums, as its last report had them."""

    incarnation: int
    interactive: _Finished = field(default_factory=_Finished)
    batch: _Finished = field(default_factory=_Finished)


class Demand:
    """Counts since the last snapshot, over all routers and workers."""

    def __init__(self) -> None:
        self._models: dict[str, _Counts] = {}
        self._seen: dict[str, _Seen] = {}
        self._from_s = 0.0
        self._to_s: float | None = None

    def hear_router(self, report: control_pb2.RouterReport, now: float) -> None:
        """A router's report has come."""
        if self._to_s is None:
            self._from_s = now - report.interval_ms / 1e3
        self._to_s = now
        for demand in report.demand:
            counts = self._models.setdefault(demand.model, _Counts())
            counts.arrived_interactive += demand.arrived.interactive
            counts.arrived_batch += demand.arrived.batch

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
        interval_s = 0.0 if self._to_s is None else self._to_s - self._from_s
        self._from_s = self._to_s or 0.0
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
        arrived_interactive=counts.arrived_interactive,
        arrived_batch=counts.arrived_batch,
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
