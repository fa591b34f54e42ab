"""Which instance a request goes to, and which request a slot goes to. Pure; times are monotonic seconds."""

from __future__ import annotations

from chiron.policy.dispatch import Decision, Dispatcher, DispatchRequest, Refusal
from chiron.policy.giving_way import GivingWay
from chiron.policy.words import RequestClass
from services.router import refusals
from services.router.pool import ModelPool
from services.router.queue import QueueFullError
from services.router.request import Exclusion, Instruction, PendingRequest, Place, Placement, Refuse
from services.router.reservations import Reservations


class Matching:
    """Brings the requests and the instances of a model together, and reserves the slots."""

    def __init__(self, dispatcher: Dispatcher, reservations: Reservations, retry_pause_s: float) -> None:
        self._dispatcher = GivingWay(dispatcher)
        self._reservations = reservations
        self._retry_pause_s = retry_pause_s
        self.retry_at: float | None = None
        """When `drain` may place a request that no instance may get now; None: none waits for that."""

    def admit(self, request: PendingRequest, model: ModelPool, now: float, out: list[Instruction]) -> None:
        """Places a request, lets it wait in its turn, or refuses it where the queue is full."""
        first = model.queue.count(request.request_class) == 0
        if first:
            placement = self._try(request, model, now)
            if placement is not None:
                out.append(Place(request, placement))
                return
        try:
            model.queue.push(request, readmit=request.admitted)
        except QueueFullError:
            waiting = len(model.queue)
            if request.request_class is RequestClass.INTERACTIVE:
                waiting = model.queue.count(RequestClass.INTERACTIVE)
            refusal = refusals.queue_full(request.model, waiting, model.wait_for_queue_s(waiting))
            out.append(Refuse(request, refusal))
            return
        request.admitted = True
        if not first:
            self.drain(model, now, out)

    def drain(self, model: ModelPool, now: float, out: list[Instruction]) -> None:
        """Places waiting requests in their order for as long as there is room."""
        for kind in RequestClass:
            skipped = []
            while (request := model.queue.peek(kind, now)) is not None:
                placement = self._try(request, model, now)
                if placement is None and not (request.excluded or request.spec_version):
                    break
                model.queue.remove(request)
                if placement is not None:
                    out.append(Place(request, placement))
                else:
                    skipped.append(request)
            for request in skipped:
                model.queue.push(request, readmit=True)

    def exclude(self, request: PendingRequest, instance_id: str, incarnation: int, now: float) -> None:
        """An instance has refused or failed the request."""
        until = now + self._retry_pause_s
        request.excluded[instance_id] = Exclusion(incarnation, until)

    def _try(self, request: PendingRequest, model: ModelPool, now: float) -> Placement | None:
        """Picks an instance that has not refused the request, else one whose refusal is a pause ago."""
        closed = model.closed(request.request_class, now)
        shut = closed.ids | model.other_weights(request)
        excluded = model.excluded(request)
        decision = self._pick(request, model, excluded | shut)
        if isinstance(decision, Refusal):
            self._look_again(closed.until)
            if excluded:
                paused, retry_at = model.paused(request, now)
                self._look_again(retry_at)
                if paused != excluded:
                    decision = self._pick(request, model, paused | shut)
        if isinstance(decision, Refusal):
            return None
        instance = model.instances[decision.instance_id]
        reservation = self._reservations.reserve(
            instance.instance_id,
            request.request_id,
            now,
            sequence=request.sequence,
            lookaside=request.request_class if request.lookaside else None,
            batch=request.request_class is RequestClass.BATCH,
            opener=request.opener,
        )
        if not instance.health.trusted and not closed.panic:
            instance.trial = reservation
        request.admitted = True
        model.changed(instance)
        if model.affinity is not None:
            model.affinity.placed(request, instance.instance_id, decision.cached_tokens)
        return Placement(
            instance.instance_id,
            instance.incarnation,
            instance.address,
            decision,
            reservation,
            instance.spec_version,
        )

    def _look_again(self, at: float | None) -> None:
        if at is not None:
            self.retry_at = min(at, self.retry_at or at)

    def _pick(
        self, request: PendingRequest, model: ModelPool, excluded: frozenset[str]
    ) -> Decision | Refusal:
        if model.affinity is None or not request.prefixes:
            wanted = DispatchRequest(request.request_class, request.prompt_tokens, excluded)
        else:
            cached = model.affinity.cached(request)
            wanted = DispatchRequest(request.request_class, request.prompt_tokens, excluded, cached)
        return self._dispatcher.pick(wanted, model.views())
