"""How many requests kept their SLO, by model, over rolling windows. Pure.

Workers count answers that are whole since they started, routers what was refused or failed in each interval
and items of the durable queue. Times are the controller's monotonic clock, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2

_FIELDS = (
    "requests",
    "met",
    "missed_ttft",
    "missed_itl",
    "missed_deadline",
    "refused",
    "failed",
    "arrived",
)
_NONE = (0,) * (2 * len(_FIELDS))
_Sums = tuple[int, ...]
"""What one instance has told since it started: of interactive requests, then of batch ones."""
SHORT_S, LONG_S = 60.0, 600.0
_SLICES = 60
"""A window drops what is too old in so many slices."""


class Window:
    """Sums over the last seconds; O(1) to add to, amortised, and to read."""

    def __init__(self, length_s: float, now: float) -> None:
        """Empty at `now`; it reaches back for `length_s` seconds, to within a sixtieth of that."""
        self.length_s = length_s
        self._began = now
        self._sums = list(_NONE)
        self._slices: deque[tuple[float, list[int]]] = deque()

    def add(self, counts: Sequence[int], now: float) -> None:
        """Something has been counted."""
        self._drop(now)
        if not self._slices or now - self._slices[-1][0] >= self.length_s / _SLICES:
            self._slices.append((now, list(_NONE)))
        newest = self._slices[-1][1]
        for index, count in enumerate(counts):
            if count:
                newest[index] += count
                self._sums[index] += count

    def message(self, now: float) -> cluster_pb2.AttainmentWindow:
        """The sums at `now`."""
        self._drop(now)
        half = len(_FIELDS)
        return cluster_pb2.AttainmentWindow(
            window_s=min(self.length_s, now - self._began),
            interactive=_class(self._sums[:half]),
            batch=_class(self._sums[half:]),
        )

    def _drop(self, now: float) -> None:
        while self._slices and now - self._slices[0][0] >= self.length_s:
            for index, count in enumerate(self._slices.popleft()[1]):
                self._sums[index] -= count


class _Model:
    def __init__(self, now: float) -> None:
        self.windows = (Window(SHORT_S, now), Window(LONG_S, now))
        self.sums = list(_NONE)

    def add(self, counts: Sequence[int], now: float) -> None:
        for window in self.windows:
            window.add(counts, now)
        for index, count in enumerate(counts):
            self.sums[index] += count


@dataclass(slots=True)
class _Seen:
    incarnation: int
    sums: _Sums


class Attainments:
    """Of all models, since the controller leads."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._models: dict[str, _Model] = {}
        self._seen: dict[str, _Seen] = {}

    def hear_agent(self, statuses: Iterable[cluster_pb2.InstanceStatus], now: float) -> None:
        """An agent has reported.

        Of an instance that is heard for the first time the present sums are where counting begins; of a later
        incarnation of it, zero.
        """
        for status in statuses:
            if not status.HasField("load"):
                continue
            seen, told = self._seen.get(status.instance_id), _sums(status.load)
            if seen is None:
                self._seen[status.instance_id] = _Seen(status.incarnation, told)
                continue
            if seen.incarnation != status.incarnation:
                seen.incarnation, seen.sums = status.incarnation, _NONE
            if told != seen.sums:
                gained = [max(0, new - old) for new, old in zip(told, seen.sums, strict=True)]
                seen.sums = told
                self._of(status.model, now).add(gained, now)

    def hear_router(self, report: control_pb2.RouterReport, now: float) -> bool:
        """A router has reported; True when it has counted anything."""
        counted = False
        for demand in report.demand:
            counts = _interval(demand)
            if any(counts):
                self._of(demand.model, now).add(counts, now)
                counted = True
        return counted

    def forget_others(self, instance_ids: Collection[str], models: Collection[str]) -> None:
        """Keeps these instances' sums and these models' counts alone: the others are gone."""
        for gone in self._seen.keys() - instance_ids:
            del self._seen[gone]
        for name in self._models.keys() - models:
            del self._models[name]

    def of(self, model: str, now: float) -> cluster_pb2.Attainment:
        """What is known of a model."""
        kept = self._models.get(model)
        if kept is None:
            kept = _Model(self._began)
        half = len(_FIELDS)
        short, long = kept.windows
        return cluster_pb2.Attainment(
            last_minute=short.message(now),
            last_ten_minutes=long.message(now),
            since_start=cluster_pb2.AttainmentWindow(
                window_s=now - self._began,
                interactive=_class(kept.sums[:half]),
                batch=_class(kept.sums[half:]),
            ),
        )

    def _of(self, model: str, now: float) -> _Model:
        kept = self._models.get(model)
        if kept is None:
            kept = self._models[model] = _Model(self._began)
        return kept


def _class(sums: Sequence[int]) -> cluster_pb2.ClassAttainment:
    return cluster_pb2.ClassAttainment(**dict(zip(_FIELDS, sums, strict=True)))


def _sums(load: cluster_pb2.InstanceLoad) -> _Sums:
    interactive, batch = load.finished_interactive, load.finished_batch
    late = interactive.slo_left
    return (
        interactive.with_slo + interactive.slo_failed + late,
        interactive.slo_met,
        interactive.with_slo - interactive.ttft_met + late,
        interactive.with_slo - interactive.itl_met,
        0,
        0,
        interactive.slo_failed,
        0,
        batch.with_slo + batch.slo_failed,
        batch.slo_met,
        0,
        0,
        batch.with_slo - batch.slo_met,
        0,
        batch.slo_failed,
        0,
    )


def _interval(demand: control_pb2.ModelDemand) -> _Sums:
    refused, failed = demand.slo_refused, demand.slo_failed
    met, late = demand.deadlines_met, demand.deadlines_missed
    return (
        refused.interactive + failed.interactive + demand.slo_left,
        0,
        demand.slo_left,
        0,
        0,
        refused.interactive,
        failed.interactive,
        demand.slo_arrived,
        refused.batch + failed.batch + met + late,
        met,
        0,
        0,
        late,
        refused.batch,
        failed.batch,
        0,
    )
