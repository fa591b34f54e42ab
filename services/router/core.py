"""The router's decisions as a state machine: events in, instructions out. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2, router_pb2, worker_pb2
from chiron.policy.dispatch import Dispatcher
from chiron.policy.tenant_queue import expected_cost
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import cluster_pb2, inference_pb2, types_pb2
from services.router import refusals
from services.router.health import EjectionSettings
from services.router.instance import TrackedInstance
from services.router.lines import Weight
from services.router.matching import Matching
from services.router.outcomes import Blame
from services.router.outlook import Outlook
from services.router.pool import ModelPool
from services.router.queue import STARVATION_S, WaitingQueue
from services.router.queue_view import queue_told
from services.router.request import Instruction, PendingRequest, Placement, Refuse
from services.router.reservations import Reservation, Reservations
from services.router.table import Table
from services.router.tracking import Tracking
from services.router.weights import stranded

_CARRIED_FAILURES = 30
"""Failed subscriptions in a row after which an instance that no controller lists is forgotten."""
_AHEAD = 1 << 60
"""Puts a resumed stream before every request that begins."""
_JITTER = (0.75, 1.25)


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Figures of RouterConfig that the core works by."""

    queue_limit: int
    worker_queue: int
    retry_pause_s: float
    ticket_ttl_s: float
    ejection: EjectionSettings = field(default_factory=EjectionSettings)
    prefixes: int = 0
    """Hashes of prompts' beginnings that are remembered of each model; 0: they do not count."""
    discipline: str = "edf"
    starvation_s: float = STARVATION_S
    tell_models: bool = True
    """Name the models that there are to whoever asks for another one; tenants must not know all of them."""


class RouterCore:
    """Places requests on instances. Each event returns what the shell must do; nothing here waits."""

    def __init__(
        self,
        settings: CoreSettings,
        dispatcher: Dispatcher,
        randomness: random.Random | None = None,
        weight: Weight = lambda _: 1.0,
    ) -> None:
        """A core without a table.

        Args:
            settings: its figures.
            dispatcher: picks among the instances that are open to a request.
            randomness: for the length of ejections; None: a fixed seed.
            weight: the tenants' shares of the places that come free while their requests wait.
        """
        self.table = Table()
        self._settings = settings
        self._weight = weight
        self._models: dict[str, ModelPool] = {}
        self._reservations = Reservations(settings.ticket_ttl_s)
        self._matching = Matching(dispatcher, self._reservations, settings.retry_pause_s)
        draws = randomness or random.Random(0)
        self._tracking = Tracking(
            settings.ejection, lambda: draws.uniform(*_JITTER), self._reservations, self._pool
        )
        self._instances = self._tracking.instances
        self._outlook = Outlook(self.table, self._models.get)
        self._arrivals = 0

    # Events from the controller.

    def snapshot(self, table: control_pb2.RoutingTable, now: float) -> list[Instruction]:
        """The controller sent a table, or one was kept on disk. Raises StaleTermError."""
        self.table.replace(table, self._serves)
        self._outlook.told(table.models, now, all_there_are=True)
        out: list[Instruction] = []
        for key in [key for key in self._instances if key not in self.table.instances]:
            self._tracking.forget(key, out)
        for routed in self.table.instances.values():
            self._tracking.track(routed, out)
        for key in self.table.carried:
            # What an earlier controller wanted of it is void; its worker itself says when it drains.
            self._instances[key].leaving = False
        self._settle(list(self._models), now, out)
        return out

    def delta(self, delta: control_pb2.RoutingDelta, now: float) -> list[Instruction]:
        """The controller sent changes. Raises EpochGapError."""
        self.table.apply(delta)
        self._outlook.told(delta.models, now, all_there_are=False)
        out: list[Instruction] = []
        touched = {*delta.removed_models, *(model.name for model in delta.models)}
        for key in delta.removed_instance_ids:
            if key in self._instances:
                touched.add(self._instances[key].model)
            self._tracking.forget(key, out)
        for routed in delta.instances:
            touched.add(routed.model)
            self._tracking.track(routed, out)
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
            return self.watch_lost(instance_id, watch, now, "another worker listens at its address")
        was_serving, incarnation = instance.serving, instance.incarnation
        instance.take(load, now)
        self._tracking.heard(instance)
        out: list[Instruction] = []
        self._tracking.count(instance, load, now, out)
        model = self._models[instance.model]
        if model.affinity is not None:
            if instance.incarnation != incarnation:
                model.affinity.void(instance_id)
            if load.HasField("prefixes"):
                model.affinity.told(instance_id, load.prefixes)
                instance.prefill_tokens_per_s = model.affinity.prefill_tokens_per_s(instance_id)
        model.changed()
        model.service_s = instance.service_s or model.service_s
        model.waits.heard(instance, load, now)
        model.waits.sample(model.instances, model.queue.count(RequestClass.INTERACTIVE), now)
        if was_serving and not instance.serving:
            self._reservations.forget(instance_id)
            self._drop_carried(instance, out)
        self._settle((instance.model,), now, out)
        return out

    def watch_lost(
        self, instance_id: str, watch: int, now: float, reason: str = "connection lost"
    ) -> list[Instruction]:
        """A subscription broke or could not be made; the shell goes on trying under the same number."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.watch != watch:
            return []
        instance.failures += 1
        self._tracking.lost(instance, now, reason)
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
            if (pool := self._models.get(request.model)) is not None:
                pool.waits.returned(request)
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
            if request.resumed_at is not None:
                # Its caller is in the midst of an answer, and a slot was its own before.
                request.sequence = self._arrivals - _AHEAD
            self._admit(request, now, out)
            return out
        # The same request again: its ticket will not be used, and it is no newcomer.
        request.sequence, request.admitted = ticket.sequence, True
        self._reservations.release(ticket)
        if request.lookaside and ticket.instance_id not in request.excluded_ids:
            self._tracking.superseded(ticket, out)
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
            model.waits.left(request)

    def release(self, reservation: Reservation, now: float) -> list[Instruction]:
        """A placement will not be used, or its request has ended."""
        out: list[Instruction] = []
        tried = self._tracking.trial_ended(reservation)
        if self._reservations.release(reservation) or tried:
            self._freed((reservation.instance_id,), now, out)
        return out

    def failed(
        self, request: PendingRequest, placement: Placement, blame: Blame, now: float
    ) -> list[Instruction]:
        """An instance refused a request or failed it; `blame` says what that tells of the instance."""
        out: list[Instruction] = []
        if blame is not Blame.FULL:
            self._matching.exclude(request, placement.instance_id, placement.incarnation, now)
        self._reservations.release(placement.reservation)
        self._tracking.failed(placement, blame, now, out)
        self._freed((placement.instance_id,), now, out)
        return out

    def answered(self, placement: Placement, now: float) -> list[Instruction]:
        """An instance has answered a request."""
        out: list[Instruction] = []
        model = self._tracking.answered(placement, now)
        if model is not None:
            self._settle((model,), now, out)
        return out

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed."""
        out: list[Instruction] = []
        lapsed = self._reservations.expire(now)
        self._tracking.unused(lapsed, now, self._settings.ticket_ttl_s / 2, out)
        self._freed({reservation.instance_id for reservation in lapsed}, now, out)
        self._settle(self._tracking.listen(now, out), now, out)
        if self._matching.retry_at is not None and self._matching.retry_at <= now:
            self._matching.retry_at = None
            for model in self._models.values():
                self._matching.drain(model, now, out)
        return out

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do; None: nothing is due."""
        times = (self._reservations.next_expiry, self._matching.retry_at, self._tracking.listen_at)
        return min((at for at in times if at is not None), default=None)

    # What others read.

    def queues(self) -> Mapping[str, WaitingQueue]:
        """Model → the requests that wait."""
        return {name: model.queue for name, model in self._models.items()}

    def model_of(self, instance_id: str) -> str | None:
        """The model that an instance serves; None: it is not known (any more)."""
        instance = self._instances.get(instance_id)
        return instance.model if instance is not None else None

    def room(self, model: str, now: float) -> int:
        """Batch credits of a model that nothing rests on, less the batch requests that wait; below 0:
        none."""
        pool = self._models.get(model)
        if pool is None or model not in self.table.models:
            return 0
        return pool.batch_credits(now) - pool.queue.count(RequestClass.BATCH)

    def batch_load(self, model: str) -> tuple[int, int, float]:
        """Instances that take batch requests of a model, those that run there, and their output tokens per
        second, by the instances' own reports.
        """
        pool = self._models.get(model)
        return pool.batch_load() if pool is not None else (0, 0, 0.0)

    def ejected(self, now: float) -> list[cluster_pb2.EjectedInstance]:
        """The instances that this router keeps requests from, with the reason."""
        return list(self._tracking.ejected(now))

    def counts(self) -> router_pb2.RouterCounts:
        """How much it holds now, as far as it knows."""
        queues = [model.queue for model in self._models.values()]
        return router_pb2.RouterCounts(
            waiting=types_pb2.ClassCounts(
                interactive=sum(queue.count(RequestClass.INTERACTIVE) for queue in queues),
                batch=sum(queue.count(RequestClass.BATCH) for queue in queues),
            ),
            reservations=len(self._reservations),
            lookaside=sum(len(one.lookaside) for one in self._instances.values()),
            started=sum(one.started for one in self._instances.values()),
        )

    def waits(self, now: float) -> list[router_pb2.RouterQueue]:
        """What waits, and how long a request would that came now, by model."""
        return [queue_told(name, pool, now) for name, pool in sorted(self._models.items()) if len(pool.queue)]

    def seen(self, now: float) -> list[router_pb2.RouterInstance]:
        """The instances as this router sees them, by id."""
        ejected = {one.instance_id: one for one in self.ejected(now)}
        return [
            router_pb2.RouterInstance(
                instance_id=key,
                model=one.model,
                address=one.address,
                role=types_pb2.Role.ValueType(one.role.value),
                state=one.load.state if one.load is not None else types_pb2.INSTANCE_STATE_UNSPECIFIED,
                reserved=self._reservations.count(key),
                batch_credits=one.credits if now < one.credits_until else 0,
                ejected=ejected.get(key),
            )
            for key, one in sorted(self._instances.items())
        ]

    def unserved(self, model: str) -> bool:
        """Whether no instance of a model is known that takes requests."""
        pool = self._models.get(model)
        return pool is None or not pool.views()

    def progress(self, request: PendingRequest, now: float) -> inference_pb2.Progress:
        """What a waiting request waits for."""
        return self._outlook.of(request, now)

    def prefixes(self) -> list[router_pb2.RouterPrefixes]:
        """What is believed of each model's prompts, and how right that was."""
        return [
            model.affinity.state(name)
            for name, model in sorted(self._models.items())
            if model.affinity is not None
        ]

    def overdue(self, request: PendingRequest, waited_s: float) -> ChironError:
        """What a request is told that has waited for as long as it may."""
        model = self._models.get(request.model)
        if model is not None and model.views():
            return refusals.waited_for_slot(request.model, waited_s)
        return refusals.waited_for_instance(self.table.models.get(request.model), request.model, waited_s)

    # Instances.

    def _serves(self, instance_id: str) -> bool:
        instance = self._instances.get(instance_id)
        return instance is not None and instance.serving

    def _pool(self, name: str) -> ModelPool:
        model = self._models.get(name)
        if model is None:
            settings = self._settings
            model = self._models[name] = ModelPool(
                WaitingQueue(
                    settings.queue_limit,
                    settings.discipline,
                    settings.starvation_s,
                    self._cost,
                    self._weight,
                ),
                settings.worker_queue,
                settings.ejection.panic_share,
                self._reservations,
                settings.prefixes,
            )
        return model

    def _cost(self, request: PendingRequest) -> float:
        """What a waiting request takes of its tenant's share."""
        mean = self._models[request.model].waits.estimator.lengths[RequestClass.INTERACTIVE].mean
        return expected_cost(request.prompt_tokens, request.choices, request.max_tokens, mean)

    def _drop_carried(self, instance: TrackedInstance, out: list[Instruction]) -> None:
        if instance.instance_id in self.table.carried:
            self.table.drop(instance.instance_id)
            self._tracking.forget(instance.instance_id, out)

    # Placing.

    def _admit(self, request: PendingRequest, now: float, out: list[Instruction]) -> None:
        error = self._refusal(request)
        if error is None:
            pool = self._models[request.model]
            pool.waits.arrived += not request.admitted and request.request_class is RequestClass.INTERACTIVE
            self._matching.admit(request, pool, now, out)
        else:
            if (known := self._models.get(request.model)) is not None:
                known.waits.left(request)
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
                self._outlook.forget(name)
            if not len(model.queue):
                continue
            error = self._hopeless(name)
            if error is not None:
                for request in model.queue.clear():
                    model.waits.left(request)
                    out.append(Refuse(request, error))
            else:
                for request in list(model.queue.resumed):
                    if (lost := stranded(request, self.table)) is not None:
                        model.queue.remove(request)
                        model.waits.left(request)
                        out.append(Refuse(request, lost))
                self._matching.drain(model, now, out)

    def _refusal(self, request: PendingRequest) -> ChironError | None:
        error = self._hopeless(request.model)
        if error is not None:
            return error
        routed = self.table.models[request.model]
        if request.adapter and request.adapter not in routed.adapters:
            return refusals.unknown_adapter(routed, request.adapter)
        if request.parses_calls and not routed.tool_parser:
            return refusals.no_tool_parser(routed)
        self._pool(request.model)
        return stranded(request, self.table)

    def _hopeless(self, name: str) -> ChironError | None:
        """Why no request of the model can be served by waiting; None: it can."""
        if not self.table.known:
            # Another router may have one.
            return ChironError(
                Reason.RETRY_ELSEWHERE, "this router has no routing table yet", retry_after_s=1.0
            )
        routed = self.table.models.get(name)
        if routed is None:
            return refusals.unknown_model(name, self.table.models if self._settings.tell_models else None)
        model = self._models.get(name)
        if routed.failed and not (model is not None and model.views()):
            return refusals.failed_model(routed)
        return None
