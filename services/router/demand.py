"""What this router saw since its last report: demand, outcomes, queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.queue import WaitingQueue

_EMPTY = WaitingQueue(0)
Total = tuple[str, str, str]
"""Model, what is counted, class."""


@dataclass(slots=True)
class _Counts:
    interactive: int = 0
    batch: int = 0

    def add(self, kind: RequestClass) -> None:
        if kind is RequestClass.BATCH:
            self.batch += 1
        else:
            self.interactive += 1

    def add_batch(self, requests: int) -> None:
        """Several at once."""
        self.batch += requests

    def add_all(self, counts: types_pb2.ClassCounts) -> None:
        self.interactive += counts.interactive
        self.batch += counts.batch

    def message(self) -> types_pb2.ClassCounts:
        return types_pb2.ClassCounts(interactive=self.interactive, batch=self.batch)


@dataclass(slots=True)
class ModelCounts:
    """Counts of one model in one interval."""

    arrived: _Counts = field(default_factory=_Counts)
    finished: _Counts = field(default_factory=_Counts)
    refused: _Counts = field(default_factory=_Counts)
    failed: _Counts = field(default_factory=_Counts)
    ttft_met: int = 0
    ttft_seen: int = 0
    slo_arrived: int = 0
    slo_refused: _Counts = field(default_factory=_Counts)
    slo_failed: _Counts = field(default_factory=_Counts)
    slo_left: int = 0
    deadlines_met: int = 0
    deadlines_missed: int = 0


class Tally:
    """Counts what becomes of one request, each time into the interval that runs then."""

    __slots__ = ("_demand", "_kind", "_model", "_slo")

    def __init__(self, demand: Demand, model: str, kind: RequestClass, slo: bool) -> None:
        self._demand = demand
        self._model = model
        self._kind = kind
        self._slo = slo

    def arrived(self) -> None:
        """The request came, for the first time."""
        counts = self._demand.of(self._model)
        counts.arrived.add(self._kind)
        counts.slo_arrived += self._slo and self._kind is RequestClass.INTERACTIVE

    def finished(self) -> None:
        """Its answer is whole."""
        self._demand.of(self._model).finished.add(self._kind)

    def refused(self, *, missed: bool = True) -> None:
        """Nobody took it; `missed`: for no fault of the request's own."""
        counts = self._demand.of(self._model)
        counts.refused.add(self._kind)
        if self._slo and missed:
            counts.slo_refused.add(self._kind)

    def failed(self, *, missed: bool = True) -> None:
        """It ended with an error; `missed`: here, for good, and for no fault of the request's own."""
        counts = self._demand.of(self._model)
        counts.failed.add(self._kind)
        if self._slo and missed:
            counts.slo_failed.add(self._kind)

    def cancelled(self) -> None:
        """It was given up before its answer was whole, mostly by its caller. No report tells of it."""
        self._demand.cancelled(self._model, self._kind)

    def left_late(self) -> None:
        """Its caller left when it had waited here for longer than its SLO allows."""
        self._demand.of(self._model).slo_left += 1


class Demand:
    """Counts per model; only models of the table, so that nobody fills it with names."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._models: dict[str, ModelCounts] = {}
        self._told: Counter[Total] = Counter()
        """What has been reported since the start."""
        self._cancelled: Counter[Total] = Counter()
        """What was given up since the start: seen here, and reported to nobody."""

    def __len__(self) -> int:
        """Models with counts that have not been told yet."""
        return len(self._models)

    def of(self, model: str) -> ModelCounts:
        """The counts of a model in the interval that runs now; not to be kept beyond it."""
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = ModelCounts()
        return counts

    def tally(self, model: str, kind: RequestClass, *, slo: bool = False) -> Tally:
        """Counts for one request of a model; `slo`: it carries one."""
        return Tally(self, model, kind, slo)

    def cancelled(self, model: str, kind: RequestClass) -> None:
        """A request was given up before its answer was whole."""
        self._cancelled[model, "cancelled", kind.name.lower()] += 1

    def totals(self) -> Mapping[Total, int]:
        """What has been counted since the start, told or not: requests by what became of them, and those of
        interactive ones that had a TTFT SLO, by whether it was kept (`ttft_met`, `ttft_missed`)."""
        return self._told + Counter(_flat(self._messages({}, self._since))) + self._cancelled

    def report(
        self, sequence: int, queues: Mapping[str, WaitingQueue], now: float
    ) -> control_pb2.RouterReport:
        """The report since the last one; starts a new interval."""
        report = control_pb2.RouterReport(sequence=sequence, interval_ms=(now - self._since) * 1000)
        report.demand.extend(self._messages(queues, now))
        self._told.update(_flat(report.demand))
        self._since, self._models = now, {}
        return report

    def _messages(self, queues: Mapping[str, WaitingQueue], now: float) -> Iterator[control_pb2.ModelDemand]:
        for name in sorted(self._models.keys() | queues.keys()):
            counts = self._models.get(name) or ModelCounts()
            queue = queues.get(name, _EMPTY)
            yield control_pb2.ModelDemand(
                model=name,
                arrived=counts.arrived.message(),
                finished=counts.finished.message(),
                refused=counts.refused.message(),
                failed=counts.failed.message(),
                queued=types_pb2.ClassCounts(
                    interactive=queue.count(RequestClass.INTERACTIVE), batch=queue.count(RequestClass.BATCH)
                ),
                ttft_met=counts.ttft_met,
                ttft_seen=counts.ttft_seen,
                batch_groups=queue.backlog.groups(now),
                slo_arrived=counts.slo_arrived,
                slo_refused=counts.slo_refused.message(),
                slo_failed=counts.slo_failed.message(),
                slo_left=counts.slo_left,
                deadlines_met=counts.deadlines_met,
                deadlines_missed=counts.deadlines_missed,
            )

    def take_back(self, report: control_pb2.RouterReport) -> None:
        """The report could not be sent: the next one covers its time too."""
        self._since -= report.interval_ms / 1000
        self._told.subtract(_flat(report.demand))
        for told in report.demand:
            counts = self.of(told.model)
            counts.arrived.add_all(told.arrived)
            counts.finished.add_all(told.finished)
            counts.refused.add_all(told.refused)
            counts.failed.add_all(told.failed)
            counts.ttft_met += told.ttft_met
            counts.ttft_seen += told.ttft_seen
            counts.slo_arrived += told.slo_arrived
            counts.slo_refused.add_all(told.slo_refused)
            counts.slo_failed.add_all(told.slo_failed)
            counts.slo_left += told.slo_left
            counts.deadlines_met += told.deadlines_met
            counts.deadlines_missed += told.deadlines_missed


def _flat(demand: Iterable[control_pb2.ModelDemand]) -> dict[Total, int]:
    counts: dict[Total, int] = {}
    for told in demand:
        for what in ("arrived", "finished", "refused", "failed"):
            for kind in ("interactive", "batch"):
                counts[told.model, what, kind] = getattr(getattr(told, what), kind)
        counts[told.model, "ttft_met", "interactive"] = told.ttft_met
        counts[told.model, "ttft_missed", "interactive"] = told.ttft_seen - told.ttft_met
    return counts
