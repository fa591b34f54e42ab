"""Which instance a request goes to, and which request a slot goes to. Pure; times are monotonic seconds."""

from __future__ import annotations

import sys

from chiron.policy.admission import AdmissionPolicy, AdmissionRefusal
from chiron.policy.dispatch import Decision, Dispatcher, DispatchRequest, Refusal
from chiron.policy.giving_way import GivingWay
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError
from services.router import refusals
from services.router.pool import ModelPool
from services.router.request import Exclusion, Instruction, PendingRequest, Place, Placement, Refuse
from services.router.reservations import Reservations

_ADMISSION = AdmissionPolicy(queue_limit=sys.maxsize)
"""The queue keeps its bound itself: it has other ones for those that go on from delivered tokens."""


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
        if not request.admitted:
            refusal = self._refusal(request, model, now)
            if refusal is not None:
                out.append(Refuse(request, refusal))
                return
        model.queue.push(request, readmit=True)
        request.admitted = True
        if not first:
            self.drain(model, now, out)

    def _refusal(self, request: PendingRequest, model: ModelPool, now: float) -> ChironError | None:
        """Why a newcomer may not wait; None: it may. Estimates nothing where nobody asks for it."""
        full = model.queue.full(request)
        asks = request.refuse_if_late and request.resumed_at is None
        if not (full or asks or model.waits.wants(now)):
            return None
        wait = model.wait(request, now)
        queued = model.queue.count(request.request_class)
        if full:
            waiting = queued if request.request_class is RequestClass.INTERACTIVE else len(model.queue)
            return refusals.queue_full(request.model, waiting, model.wait_for_queue_s(waiting), wait)
        budget_s = model.waits.budget_s(request, now)
        decision = _ADMISSION.admit(
            queued=queued, estimate=wait.estimate, budget_s=budget_s, refuse_if_late=asks
        )
        if isinstance(decision, AdmissionRefusal):
            return refusals.out_of_reach(request.model, decision, wait, budget_s)
        if model.waits.wants(now):
            model.waits.queued(request, wait, now)
        return None

    def drain(self, model: ModelPool, now: float, out: list[Instruction]) -> None:
        """Places waiting requests in their order for as long as there is room."""
        for kind in RequestClass:
            skipped = []
            while (request := model.queue.peek(kind, now)) is not None:
                placement = self._try(request, model, now)
                if placement is None and not (request.excluded or request.spec_version):
                    break
                if placement is not None:
                    model.queue.take(request)
                    out.append(Place(request, placement))
                else:
                    model.queue.remove(request)
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
        model.waits.placed(request, now)
        if model.affinity is not None:
            model.affinity.placed(request, instance.instance_id)
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
