"""When a batch will have ended, given what serves now, and whether its deadline will hold.

The work that is handed out until its last item (`chiron.policy.unit_finish`), over the output tokens per
second that batch work has made of late while some of it waited, and the time that one item takes. Work is in
output tokens, of lengths learned from the items that have ended; spread and quantile are those of
`chiron.policy.waiting`.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from chiron.batch.records import Batch, BatchKey, BatchState
from chiron.policy.drain_rate import DrainRate
from chiron.policy.unit_finish import work_until_served
from chiron.policy.waiting import WaitingTimeEstimator
from chiron.policy.words import RequestClass
from chiron.policy.work_units import WorkUnit
from chiron.v1 import batch_pb2 as pb
from services.router.batch.backlog import QueueBacklog, work_unit

_TICK_S = 1.0
_HOLD_S, _FORGET_S = 10.0, 60.0
"""An outlook changes when the new one has lasted so long; one that nobody has asked for so long is
forgotten."""
_MOST_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Serving:
    """What batch work of one model gets now, by the instances' own reports."""

    instances: int
    """That take batch requests."""
    running: int
    """Batch requests in their batches, whoever sent them."""
    tokens_per_s: float
    """Output tokens that these make."""

    @property
    def itl_s(self) -> float:
        """Mean time between tokens of one request, in seconds; 0: nothing runs."""
        return self.running / self.tokens_per_s if self.tokens_per_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is expected of a batch."""

    end: float
    """When its last result is there, by the store's clock."""
    bad_end: float
    """The same in a bad run."""
    outlook: pb.DeadlineOutlook.ValueType


@dataclass(slots=True)
class _Model:
    rate: DrainRate
    estimator: WaitingTimeEstimator
    itl_s: float = 0.0
    served: dict[Hashable, float] | None = None
    """Unit → work until it is served; None: to be reckoned."""


@dataclass(slots=True)
class _Outlook:
    told: pb.DeadlineOutlook.ValueType
    other: pb.DeadlineOutlook.ValueType
    """What the last estimates say, if not that."""
    since: float
    """For how long they have, monotonic, in seconds."""
    asked: float


class Estimates:
    """Asking costs a few look-ups; once after each read of what waits, O(n log n) for n units of the
    model."""

    def __init__(
        self, backlog: QueueBacklog, serving: Callable[[str], Serving], weight: Callable[[str], float]
    ) -> None:
        """Knows of nothing yet.

        Args:
            backlog: what waits.
            serving: what serves a model.
            weight: of a tenant.
        """
        self._backlog = backlog
        self._serving = serving
        self._weight = weight
        self._time = asyncio.get_running_loop().time
        self._models: dict[str, _Model] = {}
        self._of_batch: OrderedDict[BatchKey, tuple[str, ...]] = OrderedDict()
        """Batch → the models of its items, as last seen to wait."""
        self._outlooks: OrderedDict[BatchKey, _Outlook] = OrderedDict()

    async def run(self) -> None:
        """Watches what serves, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            for model, order in self._backlog.orders.items():
                if order.ready(self._backlog.now()):
                    self._observe(model)

    def read(self) -> None:
        """What waits has been read anew."""
        found: dict[BatchKey, set[str]] = {}
        for unit in self._backlog.units:
            found.setdefault(unit.batch, set()).add(unit.model)
        for batch, models in found.items():
            self._of_batch[batch] = tuple(sorted(models))
            self._of_batch.move_to_end(batch)
        while len(self._of_batch) > max(_MOST_KEPT, len(found)):
            self._of_batch.popitem(last=False)
        for model in self._models.values():
            model.served = None

    def learn(self, model: str, output_tokens: int) -> None:
        """An item has ended."""
        lengths = self._model(model).estimator.lengths[RequestClass.BATCH]
        lengths.observe(1, output_tokens, output_tokens**2)

    def made(self, model: str, output_tokens: int, running: int) -> None:
        """Items at this router have made so many tokens since the last time, and so many run."""
        self._model(model).estimator.lengths[RequestClass.BATCH].made(output_tokens, running)

    def of(self, batch: Batch) -> Estimate | None:
        """What is expected; None: nothing can be said, as nothing serves or too little was seen."""
        key = (batch.tenant, batch.batch_id)
        counts = batch.counts
        if batch.state is not BatchState.ACTIVE or counts.ended >= counts.received:
            return None
        parts = [self._wait(key, model) for model in self._of_batch.get(key, ())]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        now = self._backlog.now()
        end, bad_end = now + max(part[0] for part in known), now + max(part[1] for part in known)
        if bad_end <= batch.deadline:
            outlook = pb.DEADLINE_OUTLOOK_HOLDS
        elif end <= batch.deadline:
            outlook = pb.DEADLINE_OUTLOOK_AT_RISK
        else:
            outlook = pb.DEADLINE_OUTLOOK_MISSES
        if now < batch.deadline:
            outlook = self._steady(key, outlook)
        return Estimate(end, bad_end, outlook)

    def describe(self, batch: Batch, progress: pb.BatchProgress) -> None:
        """Adds to a batch's progress what is expected of it."""
        estimate = self.of(batch)
        if estimate is not None:
            progress.estimated_end.FromMicroseconds(round(1e6 * estimate.end))
            progress.outlook = estimate.outlook

    def _observe(self, name: str) -> None:
        serving, model = self._serving(name), self._model(name)
        if serving.instances:
            model.rate.observe(serving.tokens_per_s, _TICK_S)
            model.itl_s = serving.itl_s or model.itl_s

    def _wait(self, key: BatchKey, name: str) -> tuple[float, float] | None:
        """Mean and bad time until what the batch has for one model has ended, in seconds."""
        model, serving = self._model(name), self._serving(name)
        if not (serving.instances and model.rate.known):
            return None
        if model.served is None:
            units = (work_unit(unit) for unit in self._backlog.units if unit.model == name)
            model.served = work_until_served(
                units, lambda unit: _output(unit, model.estimator), self._weight, self._backlog.now()
            )
        lengths = model.estimator.lengths[RequestClass.BATCH]
        # Where nothing waits any more, only what runs has to end.
        work = model.served.get((key, name), 0.0)
        wait = model.estimator.estimate(
            {RequestClass.BATCH: round(work / lengths.mean)},
            model.rate.tokens_per_s,
            noise=model.rate.noise,
            drift=model.rate.drift,
        )
        if not wait.mean_s < math.inf:
            return None
        itl_s = serving.itl_s or model.itl_s
        return wait.mean_s + itl_s * lengths.mean, wait.quantile_s + itl_s * lengths.tail(0.05)

    def _steady(self, key: BatchKey, outlook: pb.DeadlineOutlook.ValueType) -> pb.DeadlineOutlook.ValueType:
        now = self._time()
        known = self._outlooks.get(key)
        if known is None or now - known.asked > _FORGET_S:
            known = self._outlooks[key] = _Outlook(outlook, outlook, now, now)
        self._outlooks.move_to_end(key)
        if len(self._outlooks) > _MOST_KEPT:
            self._outlooks.popitem(last=False)
        known.asked = now
        if outlook != known.other:
            known.other, known.since = outlook, now
        if known.other != known.told and now - known.since >= _HOLD_S:
            known.told = known.other
        return known.told

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model(DrainRate(), WaitingTimeEstimator())
        return model


def _output(unit: WorkUnit, estimator: WaitingTimeEstimator) -> float:
    """Expected output tokens of a unit."""
    mean = estimator.lengths[RequestClass.BATCH].mean
    most = unit.max_tokens / unit.items
    return unit.items * (min(mean, most) if most else mean)
