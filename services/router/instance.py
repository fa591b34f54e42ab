"""One instance as this router sees it: the worker's own reports, and what they tell of its speed. Pure."""

from __future__ import annotations

from collections.abc import Callable

from chiron.internal.v1 import worker_pb2
from chiron.policy.dispatch import InstanceView
from chiron.policy.words import RequestClass, Role
from chiron.v1 import types_pb2
from services.router.health import Health
from services.router.reservations import Reservation

DEFAULT_SERVICE_S = 2.0
"""Assumed time that a request keeps its slot until one has ended, in seconds."""
_SMOOTHING = 0.1


class TrackedInstance:
    """State of one instance. It is usable while its load stream is up and says READY, and it is to stay."""

    def __init__(
        self,
        instance_id: str,
        model: str,
        address: str,
        role: Role,
        incarnation: int,
        new_health: Callable[[], Health],
    ) -> None:
        self.instance_id = instance_id
        self.model = model
        self.address = address
        self.role = role
        """As the controller says until the worker does."""
        self.incarnation = incarnation
        self.spec_version = 0
        """Version of the model's spec that it runs, as the controller says; 0: unknown."""
        self.watch = 0
        """Number of the subscription in force; reports of an earlier one are void. 0: none."""
        self.leaving = False
        """The controller wants it no more: it finishes what it has."""
        self.failures = 0
        """Times in a row that the subscription failed."""
        self.load: worker_pb2.WatchLoadResponse | None = None
        """The last report of the subscription in force; None: it is not up."""
        self.prefill_tokens_per_s = 0.0
        """Prompt tokens that it computes a second for one request; 0: unknown."""
        self.service_s = 0.0
        """Smoothed time from start to end of its requests, in seconds; 0: none has ended."""
        self.lookaside: dict[str, RequestClass] = {}
        """Requests that came with this router's tickets and run there."""
        self.health = new_health()
        self.trial: Reservation | None = None
        """That of the request which is there on trial."""
        self.held_until = 0.0
        """Monotonic time before which it gets nothing unless it reports, because it was full, in seconds."""
        self.heard_at = 0.0
        """Monotonic time of its last report, in seconds."""
        self.credits = 0
        """Batch requests that it takes from this router, by its last report."""
        self.credits_until = 0.0
        """Monotonic time at which they lapse, in seconds."""
        self._new_health = new_health
        self._started: dict[str, float] = {}
        self._view: InstanceView | None = None

    @property
    def serving(self) -> bool:
        """Whether it takes requests."""
        return self.load is not None and self.load.state == types_pb2.INSTANCE_STATE_READY

    @property
    def usable(self) -> bool:
        """Whether a request may be sent there."""
        return self.serving and not self.leaving

    def take(self, load: worker_pb2.WatchLoadResponse, now: float) -> None:
        """Takes a load report."""
        if self.incarnation != load.incarnation:
            self._clear()
            self.health, self.trial = self._new_health(), None
        self.load, self._view, self.failures = load, None, 0
        self.heard_at, self.held_until = now, 0.0
        self.credits, self.credits_until = load.batch_credits, now + load.batch_credit_ttl_ms / 1000
        self.incarnation = load.incarnation
        if load.role != types_pb2.ROLE_UNSPECIFIED:
            self.role = Role(load.role)
        for request_id in load.started_request_ids:
            self._started[request_id] = now
        for request_id in load.finished_request_ids:
            started = self._started.pop(request_id, None)
            if started is not None:
                taken = now - started
                self.service_s += (taken - self.service_s) * (_SMOOTHING if self.service_s else 1.0)

    def lose(self) -> None:
        """Makes it unusable until its next report."""
        self.load, self._view, self.trial = None, None, None
        self._clear()

    @property
    def on_trial(self) -> bool:
        """Whether a request is there on trial. A ticket that lapses unused ends its trial."""
        trial = self.trial
        return trial is not None and (trial.live or trial.lookaside is None)

    @property
    def started(self) -> int:
        """Requests that the worker has told of as started and not as finished."""
        return len(self._started)

    def changed(self) -> None:
        """Marks the view as out of date: a reservation came or went."""
        self._view = None

    def view(self, reserved: int, queue_allowance: int, model_service_s: float) -> InstanceView:
        """The snapshot that a decision rests on; made anew only after a change. It must be usable."""
        if self._view is None:
            load = self.load
            if load is None:
                raise ValueError(f"{self.instance_id} has no load report")
            self._view = InstanceView(
                instance_id=self.instance_id,
                role=self.role,
                batch_size=max(1, load.batch_size),
                running=load.running.interactive + load.running.batch,
                waiting_interactive=load.waiting.interactive,
                waiting_batch=load.waiting.batch,
                reserved=reserved,
                queue_allowance=(
                    min(queue_allowance, load.max_waiting)
                    if load.HasField("max_waiting")
                    else queue_allowance
                ),
                kv_free_tokens=load.kv_free_tokens,
                itl_ms=load.itl_mean_ms,
                service_s=self.service_s or model_service_s or DEFAULT_SERVICE_S,
                yielding=load.yielding,
                prefill_tokens_per_s=self.prefill_tokens_per_s,
            )
        return self._view

    def _clear(self) -> None:
        self._started.clear()
        self.lookaside.clear()
