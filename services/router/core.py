"""The router's decisions as a state machine: events in, instructions out. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import Dispatcher
from chiron.policy.words import Role
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import types_pb2
from services.router import refusals
from services.router.instance import TrackedInstance
from services.router.matching import Matching
from services.router.pool import ModelPool
from services.router.queue import WaitingQueue
from services.router.request import (
    CloseWatch,
    Ended,
    Instruction,
    OpenWatch,
    PendingRequest,
    Placement,
    Refuse,
)
from services.router.reservations import Reservation, Reservations
from services.router.table import Table

_CARRIED_FAILURES = 30
"""Failed subscriptions in a row after which an instance that no controller lists is forgotten."""
_GONE = (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Figures of RouterConfig that the core works by."""

    queue_limit: int
    worker_queue: int
    retry_pause_s: float
    ticket_ttl_s: float


class RouterCore:
    """Places requests on instances. Each event returns what the shell must do; nothing here waits."""

    def __init__(self, settings: CoreSettings, dispatcher: Dispatcher) -> None:
        self.table = Table()
        self._settings = settings
        self._models: dict[str, ModelPool] = {}
        self._instances: dict[str, TrackedInstance] = {}
        self._reservations = Reservations(settings.ticket_ttl_s)
        self._matching = Matching(dispatcher, self._reservations, settings.retry_pause_s)
        self._watches = 0
        self._arrivals = 0

    # Events from the controller.

    def snapshot(self, table: control_pb2.RoutingTable, now: float) -> list[Instruction]:
        """The controller sent a table."""
        self.table.replace(table, self._serves)
        out: list[Instruction] = []
        for key in [key for key in self._instances if key not in self.table.instances]:
            self._forget(key, out)
        for routed in self.table.instances.values():
            self._track(routed, out)
        self._settle(list(self._models), now, out)
        return out

    def delta(self, delta: control_pb2.RoutingDelta, now: float) -> list[Instruction]:
        """The controller sent changes. Raises EpochGapError."""
        self.table.apply(delta)
        out: list[Instruction] = []
        touched = {*delta.removed_models, *(model.name for model in delta.models)}
        for key in delta.removed_instance_ids:
            if key in self._instances:
                touched.add(self._instances[key].model)
            self._forget(key, out)
        for routed in delta.instances:
            touched.add(routed.model)
            self._track(routed, out)
        self._settle(touched, now, out)
        return out

    # Events from the workers.

    def load(
        self, instance_id: str, watch: int, load: worker_pb2.WatchLoadResponse, now: float
    ) -> list[Instruction]:
        """A subscription brought a report."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.watch != watch:
            return []
        if load.instance_id != instance_id:
            # Another worker listens at the address now.
            return self.watch_lost(instance_id, watch, now)
        was_usable = instance.usable
        instance.take(load, now)
        out: list[Instruction] = []
        self._count(instance, load, out)
        model = self._models[instance.model]
        model.changed()
        model.service_s = instance.service_s or model.service_s
        if was_usable and not instance.usable:
            self._reservations.forget(instance_id)
            self._drop_carried(instance, out)
        self._settle((instance.model,), now, out)
        return out

    def watch_lost(self, instance_id: str, watch: int, now: float) -> list[Instruction]:
        """A subscription broke or could not be made; the shell goes on trying under the same number."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.watch != watch:
            return []
        instance.failures += 1
        self._lose(instance)
        out: list[Instruction] = []
        if instance.failures >= _CARRIED_FAILURES:
            self._drop_carried(instance, out)
        self._settle((instance.model,), now, out)
        return out

    # Events from requests.

    def submit(self, request: PendingRequest, now: float) -> list[Instruction]:
        """A request wants an instance: placed, refused, or kept waiting (no instruction for it)."""
        out: list[Instruction] = []
        if request.sequence:
            self._admit(request, now, out)
            return out
        for key in request.excluded_ids:
            instance = self._instances.get(key)
            if instance is not None:
                self._matching.exclude(request, instance.instance_id, instance.incarnation, now)
        ticket = self._reservations.ticket(request.request_id)
        if ticket is None:
            self._arrivals += 1
            request.sequence = self._arrivals
            self._admit(request, now, out)
            return out
        # The same request again: its ticket will not be used, and it is no newcomer.
        request.sequence, request.admitted = ticket.sequence, True
        self._reservations.release(ticket)
        holder = self._instances[ticket.instance_id]
        self._models[holder.model].changed(holder)
        self._admit(request, now, out)
        self._freed((ticket.instance_id,), now, out)
        return out

    def has_ticket(self, request_id: str) -> bool:
        """Whether the request holds a ticket that nobody has used yet."""
        return self._reservations.ticket(request_id) is not None

    def cancel(self, request: PendingRequest) -> None:
        """A request left while it waited."""
        model = self._models.get(request.model)
        if model is not None:
            model.queue.remove(request)

    def release(self, reservation: Reservation, now: float) -> list[Instruction]:
        """A placement will not be used, or its request has ended."""
        out: list[Instruction] = []
        if self._reservations.release(reservation):
            self._freed((reservation.instance_id,), now, out)
        return out

    def failed(
        self, request: PendingRequest, placement: Placement, *, unreachable: bool, now: float
    ) -> list[Instruction]:
        """An instance refused a request, or (unreachable) could not be talked to at all."""
        out: list[Instruction] = []
        self._matching.exclude(request, placement.instance_id, placement.incarnation, now)
        self._reservations.release(placement.reservation)
        instance = self._instances.get(placement.instance_id)
        if instance is None or instance.incarnation != placement.incarnation:
            return out
        if unreachable and instance.load is not None:
            # Only a new subscription proves that it can be reached again.
            self._lose(instance)
            out.append(CloseWatch(instance.instance_id))
            self._watch(instance, out)
        self._freed((instance.instance_id,), now, out)
        return out

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed."""
        out: list[Instruction] = []
        self._freed(self._reservations.expire(now), now, out)
        if self._matching.retry_at is not None and self._matching.retry_at <= now:
            self._matching.retry_at = None
            for model in self._models.values():
                self._matching.drain(model, now, out)
        return out

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do; None: nothing is due."""
        expiry = self._reservations.next_expiry
        if expiry is None or self._matching.retry_at is None:
            return self._matching.retry_at if expiry is None else expiry
        return min(expiry, self._matching.retry_at)

    # What others read.

    def queues(self) -> Mapping[str, WaitingQueue]:
        """Model → the requests that wait."""
        return {name: model.queue for name, model in self._models.items()}

    def overdue(self, request: PendingRequest, waited_s: float) -> ChironError:
        """What a request is told that has waited for as long as it may."""
        model = self._models.get(request.model)
        if model is not None and model.views():
            return refusals.waited_for_slot(request.model, waited_s)
        return refusals.waited_for_instance(self.table.models.get(request.model), request.model, waited_s)

    # Instances.

    def _serves(self, instance_id: str) -> bool:
        instance = self._instances.get(instance_id)
        return instance is not None and instance.usable

    def _track(self, routed: control_pb2.RoutedInstance, out: list[Instruction]) -> None:
        key = routed.instance_id
        instance = self._instances.get(key)
        if not routed.address or routed.state in _GONE:
            self._forget(key, out)
            return
        if instance is not None and (instance.model, instance.address) == (routed.model, routed.address):
            return
        self._forget(key, out)
        role = Role(routed.role) if routed.role else Role.MIXED
        instance = TrackedInstance(key, routed.model, routed.address, role, routed.incarnation)
        self._instances[key] = instance
        model = self._models.get(routed.model)
        if model is None:
            model = self._models[routed.model] = self._pool()
        model.instances[key] = instance
        self._watch(instance, out)

    def _pool(self) -> ModelPool:
        settings = self._settings
        return ModelPool(settings.queue_limit, settings.worker_queue, self._reservations)

    def _watch(self, instance: TrackedInstance, out: list[Instruction]) -> None:
        self._watches += 1
        instance.watch = self._watches
        out.append(OpenWatch(instance.instance_id, instance.address, instance.watch))

    def _lose(self, instance: TrackedInstance) -> None:
        instance.lose()
        self._reservations.forget(instance.instance_id)
        self._models[instance.model].changed()

    def _count(
        self, instance: TrackedInstance, load: worker_pb2.WatchLoadResponse, out: list[Instruction]
    ) -> None:
        """Hands over from this router's reservations to the worker's own count."""
        for ids in (load.started_request_ids, load.finished_request_ids):
            for reservation in self._reservations.confirm(instance.instance_id, ids):
                if reservation.lookaside is not None:
                    instance.lookaside[reservation.request_id] = reservation.lookaside
        if instance.lookaside:
            for request_id in load.finished_request_ids:
                kind = instance.lookaside.pop(request_id, None)
                if kind is not None:
                    out.append(Ended(instance.model, kind))

    def _forget(self, key: str, out: list[Instruction]) -> None:
        instance = self._instances.pop(key, None)
        if instance is not None:
            model = self._models[instance.model]
            del model.instances[key]
            model.changed()
            self._reservations.forget(key)
            out.append(CloseWatch(key))

    def _drop_carried(self, instance: TrackedInstance, out: list[Instruction]) -> None:
        if instance.instance_id in self.table.carried:
            self.table.drop(instance.instance_id)
            self._forget(instance.instance_id, out)

    # Placing.

    def _admit(self, request: PendingRequest, now: float, out: list[Instruction]) -> None:
        error = self._refusal(request)
        if error is None:
            self._matching.admit(request, self._models[request.model], now, out)
        else:
            out.append(Refuse(request, error))

    def _freed(self, instance_ids: Iterable[str], now: float, out: list[Instruction]) -> None:
        for key in instance_ids:
            instance = self._instances.get(key)
            if instance is not None:
                model = self._models[instance.model]
                model.changed(instance)
                if len(model.queue):
                    self._matching.drain(model, now, out)

    # Refusing.

    def _settle(self, names: Iterable[str], now: float, out: list[Instruction]) -> None:
        """After a change: refuses what waits in vain and places what can be."""
        for name in names:
            model = self._models.get(name)
            if model is None:
                continue
            if name not in self.table.models and not model.instances:
                del self._models[name]
            if not len(model.queue):
                continue
            error = self._hopeless(name)
            if error is not None:
                out.extend(Refuse(request, error) for request in model.queue.clear())
            else:
                self._matching.drain(model, now, out)

    def _refusal(self, request: PendingRequest) -> ChironError | None:
        error = self._hopeless(request.model)
        if error is not None:
            return error
        routed = self.table.models[request.model]
        if request.adapter and request.adapter not in routed.adapters:
            return refusals.unknown_adapter(routed, request.adapter)
        if request.model not in self._models:
            self._models[request.model] = self._pool()
        return None

    def _hopeless(self, name: str) -> ChironError | None:
        """Why no request of the model can be served by waiting; None: it can."""
        if not self.table.known:
            # Another router may have one.
            return ChironError(
                Reason.RETRY_ELSEWHERE, "this router has no routing table yet", retry_after_s=1.0
            )
        routed = self.table.models.get(name)
        if routed is None:
            return refusals.unknown_model(name, self.table.models)
        model = self._models.get(name)
        if routed.failed and not (model is not None and model.views()):
            return refusals.failed_model(routed)
        return None
