"""The requests that a worker has accepted and not yet ended. Pure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from chiron.rpc.errors import ChironError
from chiron.v1 import types_pb2
from services.worker.promises import NO_PROMISE, Promise


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One accepted request."""

    request_id: str
    attempt: int
    batch: bool
    """Class: batch, else interactive."""
    slots: int
    """Choices; each takes a slot of the batch."""
    priority: int
    """The engine's; lower is more urgent."""
    itl_slo_ms: float
    """0: none."""
    task: asyncio.Task[object]
    """The call that serves it."""
    tenant: str = ""
    """Who pays; empty where tenancy is off."""
    promise: Promise = NO_PROMISE
    has_output: bool = False
    answered: bool = False
    """Its answer is whole and counted, though it may not have been read yet."""
    writing_since: float | None = None
    """Monotonic second at which the present write began; None between writes."""
    cut: ChironError | None = None
    """Why the worker itself ended the request, once it has."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Slots taken and asked for, by class. Freshness: now, as far as the engine has published."""

    running: types_pb2.ClassCounts
    waiting: types_pb2.ClassCounts
    tightest_itl_slo_ms: float
    """The least ITL SLO among the requests that run, in milliseconds; 0: none that runs has one."""


class LiveRequests:
    """Live requests by id, in order of arrival."""

    def __init__(self) -> None:
        self._by_id: dict[str, LiveRequest] = {}
        self.slots = [0, 0]
        """Choices of live requests: interactive, batch."""
        self.idle = asyncio.Event()
        """Set while there is no request."""
        self.idle.set()
        self.busy = asyncio.Event()
        """Set while there is one."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(tuple(self._by_id.values()))

    def get(self, request_id: str) -> LiveRequest | None:
        """The live request of this id."""
        return self._by_id.get(request_id)

    def add(self, request: LiveRequest) -> None:
        """Takes a request in; its id must not be live."""
        self._by_id[request.request_id] = request
        self.slots[request.batch] += request.slots
        self.idle.clear()
        self.busy.set()

    def remove(self, request: LiveRequest) -> None:
        """Forgets a request."""
        del self._by_id[request.request_id]
        self.slots[request.batch] -= request.slots
        request.ended.set()
        if not self._by_id:
            self.idle.set()
            self.busy.clear()

    def occupancy(self, *, engine_running: int, engine_waiting: int, batch_size: int) -> Occupancy:
        """Splits the live requests by class into running and waiting.

        The engine counts without classes, and its figures may lag behind what was accepted:
        - A request without output that the engine does not count yet runs if a slot is free, else it waits.
        - It admits by (priority, arrival), so those who wait are the last in that order, those without
          output before those that had some.
        - Requests with output that it counts no more have ended there and only wait for their reader: they
          hold no slot. The earliest are taken for those.
        """
        total = sum(self.slots)
        fresh = sum(request.slots for request in self._by_id.values() if not request.has_output)
        unseen = min(fresh, max(0, total - engine_running - engine_waiting))
        waiting = min(total, engine_waiting + max(0, unseen - max(0, batch_size - engine_running)))
        unread = max(0, total - engine_running - engine_waiting - unseen)
        by_need = sorted(self._by_id.values(), key=lambda request: (not request.has_output, request.priority))
        waits = _take(reversed(by_need), waiting)
        done = _take((request for request in self._by_id.values() if request.has_output), unread)
        return Occupancy(
            running=types_pb2.ClassCounts(
                interactive=max(0, self.slots[False] - waits[False] - done[False]),
                batch=max(0, self.slots[True] - waits[True] - done[True]),
            ),
            waiting=types_pb2.ClassCounts(interactive=waits[False], batch=waits[True]),
            tightest_itl_slo_ms=_tightest_slo_ms(by_need, total - waiting),
        )


def _tightest_slo_ms(requests: Iterable[LiveRequest], slots: int) -> float:
    """The least ITL SLO among the requests that have the first of these slots; 0: none has one."""
    tightest = math.inf
    for request in requests:
        if slots <= 0:
            break
        slots -= request.slots
        if request.itl_slo_ms:
            tightest = min(tightest, request.itl_slo_ms)
    return 0.0 if tightest == math.inf else tightest


def _take(requests: Iterable[LiveRequest], slots: int) -> tuple[int, int]:
    """The classes of this many slots, taken from the requests in order."""
    split = [0, 0]
    for request in requests:
        if not slots:
            break
        taken = min(slots, request.slots)
        split[request.batch] += taken
        slots -= taken
    return split[False], split[True]
