"""One model's usable instances and waiting requests. Pure; times are monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.dispatch import InstanceView
from chiron.policy.words import RequestClass, Role
from services.router.affinity import Affinity
from services.router.instance import DEFAULT_SERVICE_S, TrackedInstance
from services.router.queue import WaitingQueue
from services.router.request import PendingRequest
from services.router.reservations import Reservations
from services.router.waits import ModelWaits, Wait

_NONE: frozenset[str] = frozenset()
_CLOSED_ROLE = {RequestClass.INTERACTIVE: Role.BATCH, RequestClass.BATCH: Role.INTERACTIVE}
"""The role that does not take a class."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Instances that must not get a request of one class now."""

    ids: frozenset[str]
    until: float | None = None
    """When there will be fewer without any further event; None: never."""
    panic: bool = False
    """Too many are ejected for ejection to count."""


_ALL_OPEN = Closed(_NONE)


class ModelPool:
    """What the placement of one model's requests rests on."""

    def __init__(
        self,
        queue: WaitingQueue,
        queue_allowance: int,
        panic_share: float,
        reservations: Reservations,
        prefixes: int = 0,
    ) -> None:
        """A pool without instances; `prefixes` are the hashes that it remembers, 0: they do not count."""
        self.affinity = Affinity(prefixes) if prefixes else None
        self.queue = queue
        self.waits = ModelWaits()
        self.instances: dict[str, TrackedInstance] = {}
        self.service_s = 0.0
        """Time that a request keeps its slot, as the instance that told last has it; 0: unknown."""
        self.doubtful: set[str] = set()
        """Ids of all instances that are held or not trusted; others may be among them."""
        self._queue_allowance = queue_allowance
        self._panic_share = panic_share
        self._reservations = reservations
        self._views: list[InstanceView] | None = None

    def changed(self, instance: TrackedInstance | None = None) -> None:
        """Marks the views as out of date, and that of an instance whose reservations changed."""
        self._views = None
        if instance is not None:
            instance.changed()

    def views(self) -> list[InstanceView]:
        """Views of the usable instances; only those that changed are made anew."""
        if self._views is None:
            count = self._reservations.count
            self._views = [
                instance.view(count(key), self._queue_allowance, self.service_s)
                for key, instance in self.instances.items()
                if instance.usable
            ]
        return self._views

    def takes(self, kind: RequestClass) -> bool:
        """Whether a usable instance has a role that takes the class. O(instances)."""
        closed = _CLOSED_ROLE[kind]
        return any(one.usable and one.role is not closed for one in self.instances.values())

    def closed(self, kind: RequestClass, now: float) -> Closed:
        """Instances closed to a class: held, ejected, on trial, or without a credit for batch work.

        O(1) for an interactive request while every instance is trusted.
        """
        if not self.doubtful and kind is RequestClass.INTERACTIVE:
            return _ALL_OPEN
        fitting = [
            one for one in self.instances.values() if one.usable and one.role is not _CLOSED_ROLE[kind]
        ]
        closed: set[str] = set()
        until: list[float] = []
        ejected = []
        for one in fitting:
            if one.held_until > now:
                closed.add(one.instance_id)
                until.append(one.held_until)
            elif kind is RequestClass.BATCH and self._credits(one, now) <= 0:
                closed.add(one.instance_id)
            if not one.health.trusted:
                ejected.append(one)
            elif not one.held_until > now:
                self.doubtful.discard(one.instance_id)
        panic = len(ejected) > self._panic_share * len(fitting)
        if not panic:
            for one in ejected:
                if not one.health.open_for_trial(now):
                    closed.add(one.instance_id)
                    until.append(one.health.until)
                elif one.on_trial:
                    closed.add(one.instance_id)
        return Closed(frozenset(closed), min(until, default=None), panic)

    def batch_credits(self, now: float) -> int:
        """Batch requests that the instances open to them would take now, by their credits."""
        closed = self.closed(RequestClass.BATCH, now).ids
        return sum(
            self._credits(one, now)
            for key, one in self.instances.items()
            if one.usable and one.role is not Role.INTERACTIVE and key not in closed
        )

    def batch_load(self) -> tuple[int, int, float]:
        """Instances that take batch requests, those that run there, and their output tokens per second."""
        instances, running, tokens_per_s = 0, 0, 0.0
        for one in self.instances.values():
            if one.usable and one.role is not Role.INTERACTIVE and one.load is not None:
                instances += 1
                running += one.load.running.batch
                if one.load.itl_mean_ms > 0:
                    tokens_per_s += 1e3 * one.load.running.batch / one.load.itl_mean_ms
        return instances, running, tokens_per_s

    def _credits(self, instance: TrackedInstance, now: float) -> int:
        if now >= instance.credits_until:
            return 0
        return instance.credits - self._reservations.batch_count(instance.instance_id)

    def other_weights(self, request: PendingRequest) -> frozenset[str]:
        """Instances at which a resumed stream would not go on as it began."""
        if not request.spec_version:
            return _NONE
        wanted = request.spec_version
        return frozenset(key for key, one in self.instances.items() if one.spec_version != wanted)

    def excluded(self, request: PendingRequest) -> frozenset[str]:
        """Instances that have refused or failed the request. Another incarnation is another instance."""
        return frozenset(self._exclusions(request)) if request.excluded else _NONE

    def paused(self, request: PendingRequest, now: float) -> tuple[frozenset[str], float | None]:
        """Those of `excluded` that must not be tried again yet, and when there will be fewer (None: none)."""
        paused = {key: until for key, until in self._exclusions(request).items() if until > now}
        return frozenset(paused), min(paused.values(), default=None)

    def _exclusions(self, request: PendingRequest) -> dict[str, float]:
        return {
            key: exclusion.until
            for key, exclusion in request.excluded.items()
            if key in self.instances and self.instances[key].incarnation == exclusion.incarnation
        }

    def wait(self, request: PendingRequest, now: float) -> Wait:
        """How long a request that came now would wait."""
        ahead = self.queue.ahead(request)
        return self.waits.wait(request.request_class, ahead, self.instances, now)

    def wait_for_queue_s(self, waiting: int) -> float:
        """Time in which `waiting` requests end, in seconds."""
        slots = sum(view.batch_size for view in self.views()) or 1
        return waiting * (self.service_s or DEFAULT_SERVICE_S) / slots
