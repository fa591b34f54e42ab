"""The simulated router: placement at arrival, queues while all is full, batch work fed into spare slots."""

from __future__ import annotations

from functools import partial
from typing import cast

from chiron.policy.admission import AdmissionPolicy, AdmissionRefusal
from chiron.policy.batch_queue import BatchQueue
from chiron.policy.disciplines import Discipline, Waiting, load_discipline
from chiron.policy.dispatch import Dispatcher
from chiron.policy.fair_shares import PRESUMED_OUTPUT
from chiron.policy.groups import GroupedRequest
from chiron.policy.preemption import PreemptionRule
from chiron.policy.snapshots import NEVER_S
from chiron.policy.tenant_queue import TenantQueue, expected_cost
from chiron.policy.words import Phase, RequestClass, Role
from chiron.sim.agenda import Agenda
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.picking import NONE_CACHED, Cached, make_picker
from chiron.sim.preempting import make_room
from chiron.sim.prefixes import SimPrefixes
from chiron.sim.settings import SimSettings
from chiron.sim.waits import RouterWaits

_NO_LIMIT = 1 << 62


class ModelRouter:
    """One model's queues and what the router knows of its instances."""

    def __init__(
        self, settings: SimSettings, index: int, dispatcher: Dispatcher, ledger: Ledger, agenda: Agenda
    ) -> None:
        queues = settings.queues
        self.index = index
        self.picker = make_picker(dispatcher, settings.engine_queue)
        weights = queues.tenant_weights
        self.interactive = TenantQueue(
            partial(load_discipline, settings.discipline, queues.starvation_s),
            lambda tenant: weights.get(tenant, 1.0),
        )
        self.batch = BatchQueue(settings.discipline, queues.batch_starvation_s)
        self.yielding = 0
        """Instances seen with batch work that gives way to interactive requests."""
        self.arrived_interactive = 0
        self.arrived_batch = 0
        self.refusals: list[AdmissionRefusal] = []
        self.waits: RouterWaits | None = None
        """Estimates of waits; None: nothing asks for them."""
        self._model = settings.models[index]
        self._ledger = ledger
        self._agenda = agenda
        self._batch_send_s = settings.live.batch_send_s
        self._sends_batch_s = 0.0
        """From when on the next batch request may leave."""
        self._rule = PreemptionRule()
        self._preemption = queues.preemption
        self._kv_reload_s = 0.0
        if settings.resume_cost == "kv-reload":
            profile = self._model.profile
            self._kv_reload_s = profile.kv_bytes_per_token / (settings.kv_reload_bytes_per_s * profile.gpus)
        self._prefixes: SimPrefixes | None = None
        if ledger.prefix is not None and queues.prefix_affinity:
            block_tokens = self._model.profile.block_size
            self._prefixes = SimPrefixes(ledger.prefix, ledger.first_token_s, block_tokens)
        # Everybody who waits in one order, beside the queue of each class.
        self._shared: Discipline | None = None
        if queues.shared:
            self._shared = load_discipline(settings.discipline, queues.starvation_s)
        self._fcfs_or_mlfq = settings.discipline != "edf"
        limits = (settings.queue_limit, queues.batch_limit)
        self._admission: tuple[AdmissionPolicy, AdmissionPolicy] | None = None
        if any(limits) or ledger.refuse_late is not None:
            interactive, batch = (AdmissionPolicy(limit or _NO_LIMIT) for limit in limits)
            self._admission = interactive, batch
        if self._admission is not None or queues.estimate_every:
            self.waits = RouterWaits(self._model, ledger, queues.estimate_quantile, queues.estimate_every)
        # Nothing has changed since nobody had room for a request of this class.
        self._full_interactive = False
        self._full_batch = False
        # Something waits in one of the queues.
        self._queued = False

    def arrive(self, request_id: int, now: float) -> None:
        """Take a new request."""
        batch = self._ledger.is_batch[request_id]
        if batch:
            self.arrived_batch += 1
        else:
            self.arrived_interactive += 1
            if not self._waits_first() and self._place(request_id, now):
                return
        if self.waits is not None and not self._let_wait(request_id, now):
            return
        if batch:
            self._queue_batch(request_id)
            if self._shared is not None:
                self._serve_shared(self._shared, now)
            elif not self._full_batch:
                self.feed(now)
        else:
            self._queue_interactive(request_id)
            if self._shared is not None:
                self._serve_shared(self._shared, now)

    def take_back(self, request_id: int, now: float) -> None:
        """Queue a request that has left its instance; it is placed when there is room."""
        if self.waits is not None:
            self.waits.returned(request_id)
        if self._ledger.is_batch[request_id]:
            self._queue_batch(request_id)
        else:
            self._queue_interactive(request_id)
        self._full_interactive = self._full_batch = False

    def sample(self, now: float) -> None:
        """Measure what waits depend on, once per report interval."""
        if self.waits is not None:
            self.waits.sample(self.arrived_interactive, len(self.interactive), now)

    def told(self, instance: SimInstance, now: float) -> None:
        """Take an instance's load message, and serve the queues if that made room."""
        seen = instance.seen
        before = seen.yields
        seen.refresh()
        if self._prefixes is not None:
            self._prefixes.told(instance, now)
        seen.accepts = accepts = instance.phase is Phase.READY and not instance.dead
        seen.yields = accepts and seen.running_batch > 0 and seen.role is Role.MIXED
        self.yielding += seen.yields - before
        self.picker.changed(seen)
        self._full_interactive = self._full_batch = False
        if self._queued:
            self.serve(now)

    def serve(self, now: float) -> None:
        """Place what waits: interactive requests first, or in one order if both classes share a queue."""
        if self._shared is not None:
            self._serve_shared(self._shared, now)
        else:
            if len(self.interactive):
                self._drain(now)
            if len(self.batch) and not self._full_batch:
                self.feed(now)
        self._queued = len(self.interactive) + len(self.batch) > 0

    def _drain(self, now: float) -> None:
        queue = self.interactive
        while (head := queue.peek(now)) is not None and self._place(cast(int, head.request_id), now):
            queue.take(head.request_id)

    def feed(self, now: float) -> None:
        """Send batch requests, in the order of their queue, to wherever slots are spare."""
        if now < self._sends_batch_s:
            # It goes on by itself.
            return
        batch = self.batch
        while (head := batch.peek(now)) is not None:
            request_id = cast(int, head)
            if not self._place_batch(request_id, now):
                return
            batch.remove(request_id)
            if self._batch_send_s:
                self._sends_batch_s = now + self._batch_send_s
                self._agenda.at(self._sends_batch_s, self._feed_on)
                return

    def _feed_on(self, now: float, _: object) -> None:
        if not self._full_batch:
            self.feed(now)

    def _serve_shared(self, queue: Discipline, now: float) -> None:
        """Place whoever is first until that one finds no room, whatever its class."""
        while (head := queue.peek(now)) is not None:
            request_id = cast(int, head.request_id)
            if self._ledger.is_batch[request_id]:
                if self._full_batch or not self._place_batch(request_id, now):
                    return
                self.batch.remove(request_id)
            else:
                if not self._place(request_id, now):
                    return
                self.interactive.remove(request_id)
            queue.remove(request_id)

    def _place_batch(self, request_id: int, now: float) -> bool:
        found = self.picker.pick_batch(self._ledger.prompt_tokens[request_id], self._cached(request_id))
        if found is None:
            self._full_batch = True
            return False
        self._send(found[0].instance, request_id, now)
        return True

    def _place(self, request_id: int, now: float) -> bool:
        if self._full_interactive:
            return False
        prompt_tokens = self._ledger.prompt_tokens[request_id]
        yielding = self._preemption and self.yielding > 0
        found = self.picker.pick_interactive(prompt_tokens, yielding, self._cached(request_id))
        if found is None:
            self._full_interactive = True
            return False
        self._send(found[0].instance, request_id, now)
        return True

    def _cached(self, request_id: int) -> Cached:
        return NONE_CACHED if self._prefixes is None else self._prefixes.cached(request_id)

    def _send(self, instance: SimInstance, request_id: int, now: float) -> None:
        ledger = self._ledger
        instance.seen.reserved += 1
        self.picker.changed(instance.seen)
        if self._prefixes is not None:
            self._prefixes.placed(request_id, instance)
        if self.waits is not None:
            self.waits.sent(request_id, now)
        if not ledger.is_batch[request_id] and instance.running_batch and self._preemption:
            for victim in make_room(instance, ledger.prompt_tokens[request_id], ledger, self._rule, now):
                if self._kv_reload_s:
                    self.take_back(victim, now)
                else:
                    # It waits there for a slot, as at a worker, which hands it back if that takes long.
                    instance.submit(victim, now, goes_on=True)
        restored = 0
        if ledger.home:
            home, computed = ledger.home.pop(request_id, ("", 0))
            if self._kv_reload_s and home == instance.instance_id:
                restored = computed
        if restored:
            instance.reload(request_id, restored, restored * self._kv_reload_s, now)
        else:
            instance.submit(request_id, now)

    def _waits_first(self) -> bool:
        """Whether a new interactive request stands behind others."""
        return self._queued and len(self.interactive if self._shared is None else self._shared) > 0

    def _let_wait(self, request_id: int, now: float) -> bool:
        """Estimate the wait of a request that is about to be queued; tell whether it is admitted."""
        waits, ledger = self.waits, self._ledger
        if waits is None:
            return True
        batch = bool(ledger.is_batch[request_id])
        if batch and not self._full_batch and not self._waits_first() and not len(self.batch):
            # It is likely to be sent at once.
            return True
        kind = RequestClass.BATCH if batch else RequestClass.INTERACTIVE
        ahead = self._ahead(request_id, kind)
        if self._admission is not None:
            policy = self._admission[batch]
            late = ledger.refuse_late is not None and bool(ledger.refuse_late[request_id])
            queued = len(self.batch) if batch else len(self.interactive)
            if late or queued >= policy.queue_limit:
                decision = policy.admit(
                    queued=queued,
                    estimate=waits.estimate(kind, ahead, now),
                    budget_s=self._budget_s(request_id, waits, now),
                    refuse_if_late=late,
                )
                if isinstance(decision, AdmissionRefusal):
                    self.refusals.append(decision)
                    ledger.refuse(request_id)
                    return False
        waits.queued(request_id, kind, ahead, now)
        return True

    def _ahead(self, request_id: int, kind: RequestClass) -> dict[RequestClass, int]:
        """Requests that go before a new one, as things stand."""
        interactive = len(self.interactive)
        if kind is RequestClass.INTERACTIVE:
            if self._shared is None:
                interactive = self.interactive.ahead(self._tenant(request_id))
            # Deadlines of batch requests are later than those of interactive ones, as a rule.
            behind_batch = self._shared is not None and self._fcfs_or_mlfq
            batch = len(self.batch) if behind_batch else 0
        else:
            batch = self.batch.ahead(min(self._ledger.deadline_s[request_id], NEVER_S))
        return {RequestClass.INTERACTIVE: interactive, RequestClass.BATCH: batch}

    def _budget_s(self, request_id: int, waits: RouterWaits, now: float) -> float:
        """The wait after which a new request can still keep its SLO."""
        ledger = self._ledger
        if ledger.is_batch[request_id]:
            return ledger.deadline_s[request_id] - now - waits.service_s
        return ledger.arrival_s[request_id] + self._model.ttft_slo_s - now - waits.start_s

    def _queue_interactive(self, request_id: int) -> None:
        ledger = self._ledger
        self._queued = True
        arrival_s = ledger.arrival_s[request_id]
        waiting = Waiting(
            request_id,
            arrival_s,
            arrival_s + self._model.ttft_slo_s,
            ledger.delivered.get(request_id, 0),
        )
        prompt_tokens = ledger.prompt_tokens[request_id]
        cost = expected_cost(prompt_tokens, 1, 0, self._mean_output())
        self.interactive.push(waiting, self._tenant(request_id), cost)
        if self._shared is not None:
            self._shared.push(waiting)

    def _tenant(self, request_id: int) -> str:
        tenant = self._ledger.tenant
        return "" if tenant is None else tenant[request_id]

    def _mean_output(self) -> float:
        """Of an answer, as far as the router knows; without estimates it learns nothing."""
        if self.waits is None:
            return PRESUMED_OUTPUT
        return self.waits.estimator.lengths[RequestClass.INTERACTIVE].mean

    def _queue_batch(self, request_id: int) -> None:
        ledger = self._ledger
        self._queued = True
        deadline_s = min(ledger.deadline_s[request_id], NEVER_S)
        arrival_s = ledger.arrival_s[request_id]
        attained_tokens = ledger.delivered.get(request_id, 0)
        self.batch.add(
            GroupedRequest(request_id, deadline_s, arrival_s, ledger.prompt_tokens[request_id], request_id),
            attained_tokens,
        )
        if self._shared is not None:
            self._shared.push(Waiting(request_id, arrival_s, deadline_s, attained_tokens))
