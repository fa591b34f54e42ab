"""What waits in the queue, by model: in the order in which it goes, as this router last read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping

from chiron.batch.records import BatchKey, Unit
from chiron.internal.v1 import control_pb2
from chiron.policy.unit_order import UnitOrder
from chiron.policy.work_units import WorkUnit
from services.router.batch.settings import BatchSettings

UnitKey = tuple[BatchKey, str]
"""A batch and a model."""


class QueueBacklog:
    """An order for each model with work. Instants are of the store's clock, seen from here."""

    def __init__(self, settings: BatchSettings, weight: Callable[[str], float]) -> None:
        """Knows of nothing yet. weight: of a tenant."""
        self._settings = settings
        self._weight = weight
        self._time = asyncio.get_running_loop().time
        self._offset_s = 0.0
        self.orders: dict[str, UnitOrder] = {}
        """Model → its units."""
        self.units: tuple[Unit, ...] = ()
        """As last read."""
        self.read_at: float | None = None
        """When that was, monotonic, in seconds; None: never yet."""

    def now(self) -> float:
        """The store's time."""
        return self._time() + self._offset_s

    def monotonic(self, instant: float) -> float:
        """An instant of the store, on this process's monotonic clock."""
        return instant - self._offset_s

    def take_clock(self, store_now: float) -> None:
        """The store has just told its time."""
        self._offset_s = store_now - self._time()

    def take(self, units: Iterable[Unit]) -> None:
        """Everything that waits, as the store has just told it."""
        self.units, self.read_at = tuple(units), self._time()
        by_model: dict[str, list[WorkUnit]] = {}
        for unit in self.units:
            by_model.setdefault(unit.model, []).append(work_unit(unit))
        now = self.now()
        for model in [model for model in self.orders if model not in by_model]:
            # Its shares go with it: who comes next begins where all others do.
            del self.orders[model]
        for model, work in by_model.items():
            order = self.orders.get(model)
            if order is None:
                order = self.orders[model] = UnitOrder(
                    self._weight, self._settings.starvation_s, self._settings.starving_every
                )
            order.update(work, now)

    def ready(self, among: Iterable[str] | None) -> Iterator[tuple[str, UnitOrder]]:
        """Models with something that may go now; `among`: of these, None: of all."""
        now = self.now()
        for model in list(self.orders) if among is None else among:
            order = self.orders.get(model)
            if order is not None and order.ready(now):
                yield model, order

    def next_ready_s(self) -> float | None:
        """Time until something is withheld no more, in seconds; None: nothing is."""
        times = [at for order in self.orders.values() if (at := order.next_ready_s()) is not None]
        return max(0.0, min(times) - self.now()) if times else None

    @property
    def age_ms(self) -> float | None:
        """Time since the queue was last read, in milliseconds; None: it never was."""
        return None if self.read_at is None else 1e3 * (self._time() - self.read_at)

    def report(self, name: str, report: control_pb2.RouterReport) -> None:
        """Adds what waits to a report, once it has been read; `name` is the queue's."""
        if (age_ms := self.age_ms) is None:
            return
        now = self.now()
        report.batch_queue.queue_id = name
        report.batch_queue.age_ms = age_ms
        for model, order in sorted(self.orders.items()):
            report.batch_queue.models.add(
                model=model,
                groups=[
                    control_pb2.RequestGroup(
                        deadline_in_ms=1e3 * (group.earliest_deadline_s - now),
                        requests=group.requests,
                        prompt_tokens=group.prompt_tokens,
                    )
                    for group in order.groups()
                ],
            )

    def of(self, key: UnitKey) -> UnitOrder | None:
        """The order that a unit is in."""
        return self.orders.get(key[1])

    def by_model(self) -> Mapping[str, UnitOrder]:
        """All of them."""
        return self.orders


def work_unit(unit: Unit) -> WorkUnit:
    """As policies see it."""
    return WorkUnit(
        key=(unit.batch, unit.model),
        tenant=unit.batch[0],
        deadline_s=unit.deadline,
        accepted_s=unit.sealed,
        priority=unit.priority,
        items=unit.queued,
        prompt_tokens=unit.prompt_tokens,
        max_tokens=unit.max_tokens,
    )
