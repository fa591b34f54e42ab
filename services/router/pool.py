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

    def excluded(self, request: PendingRequest, now: float) -> tuple[frozenset[str], float | None]:
        """Instances that the request must not go to now, and when fewer will be excluded (None: unknown).

        While another usable instance is left, full or not, those that refused stay excluded; once all have
        refused, each may be tried again after the pause. Another incarnation is another instance.
        """
        if not request.excluded:
            return _NONE, None
        current = {
            key: exclusion
            for key, exclusion in request.excluded.items()
            if key in self.instances and self.instances[key].incarnation == exclusion.incarnation
        }
        if any(key not in current for key, instance in self.instances.items() if instance.usable):
            return frozenset(current), None
        paused = {key: exclusion.until for key, exclusion in current.items() if exclusion.until > now}
        return frozenset(paused), min(paused.values(), default=None)

    def wait_for_queue_s(self) -> float:
        """Time in which as many requests end as wait now, in seconds."""
        slots = sum(view.batch_size for view in self.views()) or 1
        return len(self.queue) * (self.service_s or DEFAULT_SERVICE_S) / slots
