"""The requests that a worker has accepted and not yet ended. Pure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from chiron.requests.prefixes import NamedPrompt
from chiron.rpc.errors import ChironError
from chiron.v1 import types_pb2
from services.worker.meter import Meter
from services.worker.pace import Pace
from services.worker.promises import NO_PROMISE, Promise

_IN_FLIGHT = 2
"""Outputs that may come of steps which were under way when a request was preempted."""


@dataclass(slots=True)
class Preempted:
    """A request that was put back into the engine's queue and is not known to run again."""

    at: float
    """Monotonic instant, in seconds."""
    by: LiveRequest | None = None
    """For whom; None: on command."""
    times: int = 1
    """How often it has been preempted with this one; its outputs may tell so later."""
    outputs: int = 0
    """Those that have come since."""


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
    pace: Pace = field(default_factory=lambda: Pace(Meter(), 0.0, 0.0, 0))
    """How far it has come."""
    prompt_tokens: int = 0
    """What its engine computes before the first new token, that of earlier attempts included."""
    accepted_at: float = 0.0
    """Monotonic instant, in seconds."""
    deadline: float = math.inf
    """By which its whole result is wanted: monotonic, in seconds."""
    resumable: bool = False
    """Whether another instance can go on with it, once it has output."""
    note: Callable[[str, Mapping[str, float | str]], None] = lambda _name, _numbers: None
    """Adds an event to its trace."""
    prompt: NamedPrompt | None = None
    """Its prompt's beginnings, where anybody wants to know of them."""
    has_output: bool = False
    answered: bool = False
    """Its answer is whole and counted, though it may not have been read yet."""
    done: bool = False
    """Whether its last token is there; it holds no slot and waits for its reader."""
    preempted: Preempted | None = None
    writing_since: float | None = None
    """Monotonic second at which the present write began; None between writes."""
    cut: ChironError | None = None
    """Why the worker itself ended the request, once it has."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def decoding(self) -> bool:
        """Whether it holds its slots for sure."""
        return self.has_output and self.preempted is None and not self.done

    def runs_again(self) -> bool:
        """One more output has come of a preempted request: whether it shows that it has its slots again."""
        preempted = self.preempted
        if preempted is None:
            return True
        preempted.outputs += 1
        if preempted.outputs <= _IN_FLIGHT:
            return False
        self.preempted = None
        return True


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
        self.fresh_tokens = 0
        """Prompt tokens of the interactive ones without output, of each choice."""
        self.streaming = 0
        """Requests that have output: as many streams of messages."""
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
        self.streaming += request.has_output
        if not (request.batch or request.has_output):
            self.fresh_tokens += request.slots * request.prompt_tokens
        self.idle.clear()
        self.busy.set()

    def begun(self, request: LiveRequest) -> None:
        """A request has its first output."""
        request.has_output = True
        self.streaming += 1
        if not request.batch:
            self.fresh_tokens -= request.slots * request.prompt_tokens

    def remove(self, request: LiveRequest) -> None:
        """Forgets a request."""
        del self._by_id[request.request_id]
        self.slots[request.batch] -= request.slots
        self.streaming -= request.has_output
        if not (request.batch or request.has_output):
            self.fresh_tokens -= request.slots * request.prompt_tokens
        request.ended.set()
        if not self._by_id:
            self.idle.set()
            self.busy.clear()

    def waiting(self, *, engine_running: int, engine_waiting: int, batch_size: int) -> list[LiveRequest]:
        """The requests that wait in the engine for a slot or for KV cache, the last to get one first.

        A request whose choices partly run is among them. O(n log n) in the live requests.
        """
        slots = self._waiting_slots(engine_running, engine_waiting, batch_size)
        found = []
        for request in reversed(self._by_need()):
            if slots <= 0:
                break
            slots -= request.slots
            found.append(request)
        return found

    def _by_need(self) -> list[LiveRequest]:
        return sorted(self._by_id.values(), key=_need)

    def _waiting_slots(self, engine_running: int, engine_waiting: int, batch_size: int) -> int:
        total = sum(self.slots)
        unseen = self._unseen(engine_running, engine_waiting)
        return min(total, engine_waiting + max(0, unseen - max(0, batch_size - engine_running)))

    def _unseen(self, engine_running: int, engine_waiting: int) -> int:
        """Slots of requests that the engine's figures do not have yet."""
        fresh = sum(request.slots for request in self._by_id.values() if not request.has_output)
        return min(fresh, max(0, sum(self.slots) - engine_running - engine_waiting))

    def occupancy(self, *, engine_running: int, engine_waiting: int, batch_size: int) -> Occupancy:
        """Splits the live requests by class into running and waiting.

        The engine counts without classes, and its figures may lag behind what was accepted:
        - A request without output that the engine does not count yet runs if a slot is free, else it waits.
        - It admits by (priority, arrival), so those who wait are the last in that order, those without
          output and those that were preempted before those that have their slots.
        - Requests with output that it counts no more have ended there and only wait for their reader: they
          hold no slot. The earliest are taken for those.
        """
        total = sum(self.slots)
        unseen = self._unseen(engine_running, engine_waiting)
        waiting = self._waiting_slots(engine_running, engine_waiting, batch_size)
        unread = max(0, total - engine_running - engine_waiting - unseen)
        by_need = self._by_need()
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


def _need(request: LiveRequest) -> tuple[bool, int]:
    return not request.has_output or request.preempted is not None, request.priority


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
