"""The simulated router: placement at arrival, queues while all is full, batch work fed into spare slots."""

from __future__ import annotations

from typing import cast

from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.dispatch import Dispatcher
from chiron.policy.groups import GroupedRequest, RequestGroups
from chiron.policy.preemption import PreemptionRule
from chiron.policy.words import Phase, Role
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.picking import Pick, make_picker
from chiron.sim.preempting import make_room
from chiron.sim.settings import SimSettings

NO_DEADLINE_S = 1e9
"""What stands for a batch request without a deadline: later than all others."""


class ModelRouter:
    """One model's queues and what the router knows of its instances."""

    def __init__(self, settings: SimSettings, index: int, dispatcher: Dispatcher, ledger: Ledger) -> None:
        self.index = index
        self.picker = make_picker(dispatcher, settings.engine_queue)
        self.interactive = load_discipline(settings.discipline)
        self.batch = RequestGroups()
        self.yielding = 0
        """Instances seen with batch work that gives way to interactive requests."""
        self.arrived_interactive = 0
        self.arrived_batch = 0
        self._model = settings.models[index]
        self._ledger = ledger
        self._queue_limit = settings.queue_limit
        self._rule = PreemptionRule()
        self._kv_reload_s = 0.0
        if settings.resume_cost == "kv-reload":
            profile = self._model.profile
            self._kv_reload_s = profile.kv_bytes_per_token / (settings.kv_reload_bytes_per_s * profile.gpus)
        # Nothing has changed since nobody had room for a request of this class.
        self._full_interactive = False
        self._full_batch = False
        # Something waits in one of the queues.
        self._queued = False

    def arrive(self, request_id: int, now: float) -> None:
        """Take a new request."""
        if self._ledger.is_batch[request_id]:
            self.arrived_batch += 1
            self._queue_batch(request_id)
            if not self._full_batch:
                self.feed(now)
            return
        self.arrived_interactive += 1
        if (self._queued and len(self.interactive)) or not self._place(request_id, now):
            if self._queue_limit and len(self.interactive) >= self._queue_limit:
                self._ledger.refuse(request_id)
            else:
                self._queue_interactive(request_id)

    def take_back(self, request_id: int, now: float) -> None:
        """Queue a request that has left its instance; it is placed when there is room."""
        if self._ledger.is_batch[request_id]:
            self._queue_batch(request_id)
        else:
            self._queue_interactive(request_id)
        self._full_interactive = self._full_batch = False

    def told(self, instance: SimInstance, now: float) -> None:
        """Take an instance's load message, and serve the queues if that made room."""
        seen = instance.seen
        before = seen.accepts and seen.role is Role.MIXED and seen.running_batch > 0
        seen.refresh()
        seen.accepts = instance.phase is Phase.READY and not instance.dead
        self.yielding += (seen.accepts and seen.role is Role.MIXED and seen.running_batch > 0) - before
        self.picker.changed(seen)
        self._full_interactive = self._full_batch = False
        if self._queued:
            self.serve(now)

    def serve(self, now: float) -> None:
        """Place what waits, interactive requests first."""
        if len(self.interactive):
            self._drain(now)
        if len(self.batch) and not self._full_batch:
            self.feed(now)
        self._queued = len(self.interactive) + len(self.batch) > 0

    def _drain(self, now: float) -> None:
        queue = self.interactive
        while (head := queue.peek(now)) is not None and self._place(cast(int, head.request_id), now):
            queue.pop(now)

    def feed(self, now: float) -> None:
        """Send batch requests, in the order of their groups, to wherever slots are spare."""
        batch = self.batch
        while (head := batch.peek()) is not None:
            request_id = cast(int, head.request_id)
            found = self.picker.pick(Pick.BATCH, self._ledger.prompt_tokens[request_id])
            if found is None:
                self._full_batch = True
                return
            batch.pop()
            self._send(found[0].instance, request_id, now)

    def _place(self, request_id: int, now: float) -> bool:
        if self._full_interactive:
            return False
        prompt_tokens = self._ledger.prompt_tokens[request_id]
        found = self.picker.pick(Pick.INTERACTIVE, prompt_tokens)
        if self.yielding and (found is None or found[1]):
            found = self.picker.pick(Pick.YIELDING, prompt_tokens) or found
        if found is None:
            self._full_interactive = True
            return False
        self._send(found[0].instance, request_id, now)
        return True

    def _send(self, instance: SimInstance, request_id: int, now: float) -> None:
        ledger = self._ledger
        instance.seen.reserved += 1
        self.picker.changed(instance.seen)
        if not ledger.is_batch[request_id] and instance.running_batch:
            for victim in make_room(instance, ledger.prompt_tokens[request_id], ledger, self._rule, now):
                self.take_back(victim, now)
        restored = 0
        if ledger.home:
            home, computed = ledger.home.pop(request_id, ("", 0))
            if self._kv_reload_s and home == instance.instance_id:
                restored = computed
        if restored:
            instance.reload(request_id, restored, restored * self._kv_reload_s, now)
        else:
            instance.submit(request_id, now)

    def _queue_interactive(self, request_id: int) -> None:
        ledger = self._ledger
        self._queued = True
        arrival_s = ledger.arrival_s[request_id]
        self.interactive.push(
            Waiting(
                request_id,
                arrival_s,
                arrival_s + self._model.ttft_slo_s,
                ledger.delivered.get(request_id, 0),
            )
        )

    def _queue_batch(self, request_id: int) -> None:
        ledger = self._ledger
        self._queued = True
        self.batch.add(
            GroupedRequest(
                request_id,
                min(ledger.deadline_s[request_id], NO_DEADLINE_S),
                ledger.arrival_s[request_id],
                ledger.prompt_tokens[request_id],
            )
        )
