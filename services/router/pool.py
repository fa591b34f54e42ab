"""One model's usable instances and waiting requests. Pure; times are monotonic seconds."""

from __future__ import annotations

from chiron.policy.dispatch import InstanceView
from services.router.instance import DEFAULT_SERVICE_S, TrackedInstance
from services.router.queue import WaitingQueue
from services.router.request import PendingRequest
from services.router.reservations import Reservations

_NONE: frozenset[str] = frozenset()


class ModelPool:
    """What the placement of one model's requests rests on."""

    def __init__(self, queue_limit: int, queue_allowance: int, reservations: Reservations) -> None:
        self.queue = WaitingQueue(queue_limit)
        self.instances: dict[str, TrackedInstance] = {}
        self.service_s = 0.0
        """Time that a request keeps its slot, as the instance that told last has it; 0: unknown."""
        self._queue_allowance = queue_allowance
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

    def wait_for_queue_s(self, waiting: int) -> float:
        """Time in which `waiting` requests end, in seconds."""
        slots = sum(view.batch_size for view in self.views()) or 1
        return waiting * (self.service_s or DEFAULT_SERVICE_S) / slots
