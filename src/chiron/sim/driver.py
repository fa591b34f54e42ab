"""What drives one simulated engine from alarm to alarm, and what it counts and measures meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappush
from math import isnan
from typing import Any

from chiron.engine import EngineModel, StepOutcome
from chiron.policy.snapshots import HANDED_OVER
from chiron.policy.words import Phase
from chiron.sim.agenda import Agenda
from chiron.sim.ledger import Ledger
from chiron.sim.noise import StepNoise
from chiron.sim.settings import SimModel, SimSettings
from chiron.sim.step_history import StepHistory

_SMOOTHING = 0.1
_NOBODY: Sequence[int] = ()
_READY = Phase.READY
"""A ready instance whose load message is under way has nobody to tell of another change."""
DEFAULT_SERVICE_S = 2.0
"""Assumed time that a request keeps its slot until one has ended, as the router assumes it."""


class Driver:
    """Drives one engine by alarms. What comes to it and is taken from it is the part of `SimInstance`.

    Between alarms the engine stands at the beginning of a planned decode run, or (after an interruption)
    at the boundary where its next step begins, with what the step under way finishes kept back until then.
    Every request passes here several times: what could be a call of its own is written out.
    """

    __slots__ = (
        "_agenda",
        "_ahead",
        "_alarm",
        "_alarm_s",
        "_batch_changed",
        "_factor",
        "_factors",
        "_finished",
        "_full_at",
        "_idle",
        "_interrupted",
        "_ledger",
        "_noise",
        "_on_alarm",
        "_on_change",
        "_served_any",
        "_single",
        "_start",
        "_was_full",
        "batch_ids",
        "engine",
        "finished_since",
        "history",
        "kv_free_tokens",
        "message_due",
        "phase",
        "running_batch",
        "running_interactive",
        "service_s",
        "waiting_batch",
        "waiting_interactive",
    )

    def __init__(
        self,
        number: int,
        model: SimModel,
        settings: SimSettings,
        agenda: Agenda,
        ledger: Ledger,
        on_change: Callable[[Any, float], None],
    ) -> None:
        self.phase = Phase.LOADING
        self.engine = EngineModel(
            model.profile,
            batch_size=model.initial_batch_size,
            step_token_budget=model.initial_step_token_budget or None,
            report_emissions=False,
        )
        self.running_interactive = 0
        self.running_batch = 0
        self.waiting_interactive = 0
        self.waiting_batch = 0
        self.batch_ids: dict[int, None] = {}
        """Batch requests in the engine, in the order in which they came."""
        self.kv_free_tokens = self.engine.kv_free_tokens
        """As of the last change in the batch."""
        self.service_s = DEFAULT_SERVICE_S
        self.message_due = False
        self.finished_since: list[int] = []
        self.history = StepHistory(model.profile.kv_read_s_per_token)
        ledger.histories.append(self.history)
        self._full_at = model.initial_batch_size * HANDED_OVER
        self._agenda = agenda
        self._ledger = ledger
        self._on_change = on_change
        self._noise = StepNoise(settings, number)
        self._factors = self._noise.ready
        self._single = 1 if settings.single_steps else None
        self._factor = self._noise.draw()
        self._batch_changed = False
        # The planned run, when it begins, and whether it is known to end with the step under way.
        self._ahead = self.engine.ahead
        self._start = 0.0
        self._interrupted = False
        self._was_full = False
        self._on_alarm = self._wake
        self._finished: Sequence[int] = _NOBODY
        self._idle = True
        self._alarm = 0
        self._alarm_s = 0.0
        self._served_any = False

    def settle(self, now: float) -> None:
        """Bring the engine up to the boundary at which its next step begins."""
        ahead = self._ahead
        if not ahead.steps:
            return
        if not self._interrupted:
            self._interrupt(now)
        if ahead.steps:
            end_s = self._start + ahead.duration_s
            self.history.pending.append(
                (end_s, ahead.duration_s, ahead.steps, ahead.positions, self._was_full, self._factor)
            )
            self._finished = ahead.take()

    def publish_now(self, now: float) -> None:
        """Publish what the step under way finishes without waiting for its end."""
        finished, self._finished = self._finished, _NOBODY
        if finished:
            # That step ends later than they do, and is their longest gap if none was longer.
            ledger = self._ledger
            for request_id in finished:
                gap_s = self.history.longest_since(ledger.first_token_s[request_id])
                if not ledger.is_batch[request_id] and gap_s > ledger.longest_gap_s[request_id]:
                    ledger.longest_gap_s[request_id] = gap_s
            self._publish(finished, now)

    def _interrupt(self, now: float) -> None:
        """End the planned run with the step under way; the engine's next step begins then."""
        ahead = self._ahead
        if now > self._start:
            ahead.cut(now - self._start)
            self._interrupted, self._was_full = True, self._full()
            if ahead.cut_short:
                self._set_alarm(self._start + ahead.duration_s)
        else:
            ahead.steps = 0
            self._set_alarm(self._start)

    def _set_alarm(self, time_s: float) -> None:
        # As Agenda.at does: every step comes by here.
        agenda = self._agenda
        self._alarm_s = time_s
        agenda.count = self._alarm = alarm = agenda.count + 1
        heappush(agenda.heap, (time_s, alarm, self._on_alarm, alarm))

    def _wake(self, now: float, alarm: int) -> None:
        if alarm != self._alarm:
            return
        finished = self._finished
        ahead = self._ahead
        steps = ahead.steps
        if steps:
            full = self._was_full if self._interrupted else self._full()
            self.history.pending.append((now, ahead.duration_s, steps, ahead.positions, full, self._factor))
            if ahead.cut_short:
                outcome = ahead.take_into_step(self._factor)
                if outcome is not None:
                    self._follow(outcome, now)
                    return
            finished = ahead.take()
        if finished:
            self._finished = _NOBODY
            self._publish(finished, now)
        self._begin(now)

    def _begin(self, now: float) -> None:
        """Plan the run that begins now, or take the step that does."""
        if self._batch_changed:
            self._batch_changed = False
            self._factor = self._factors.pop() if self._factors else self._noise.draw()
        ahead = self._ahead
        if ahead.plan(self._factor, self._single):
            self._start = now
            self._interrupted = False
            self._set_alarm(now + ahead.duration_s)
            return
        outcome = self.engine.step(now, self._factor)
        if outcome is not None:
            self._follow(outcome, now)
        else:
            self._idle = True
            self._on_change(self, now)

    def _follow(self, outcome: StepOutcome, now: float) -> None:
        """Note a step that begins now, and plan the run that begins when it ends."""
        duration_s, _, _, positions, _, admitted, first_tokens, finished, preempted, _ = outcome
        end_s = now + duration_s
        if first_tokens:
            ledger = self._ledger
            first = ledger.first_token_s
            if ledger.last_token_s:
                for request_id in first_tokens:
                    ledger.end_gap(request_id, end_s)
            for request_id in first_tokens:
                if isnan(first[request_id]):
                    first[request_id] = end_s
        if admitted or preempted:
            self._move(outcome, now, end_s)
        waiting = self.waiting_interactive + self.waiting_batch
        full = waiting > 0 or self.running_interactive + self.running_batch >= self._full_at
        self.history.pending.append((end_s, duration_s, 1, positions, full, self._factor))
        if finished:
            self._finished = finished
            self._batch_changed = True
        else:
            self._factor = self._factors.pop() if self._factors else self._noise.draw()
            ahead = self._ahead
            if ahead.plan(self._factor, self._single):
                self._start = end_s
                self._interrupted = False
                end_s += ahead.duration_s
        # As _set_alarm() does.
        agenda = self._agenda
        self._alarm_s = end_s
        agenda.count = self._alarm = alarm = agenda.count + 1
        heappush(agenda.heap, (end_s, alarm, self._on_alarm, alarm))

    def _full(self) -> bool:
        """Whether slots are taken or requests wait."""
        running = self.running_interactive + self.running_batch
        return running >= self._full_at or self.waiting_interactive + self.waiting_batch > 0

    def _move(self, outcome: StepOutcome, now: float, end_s: float) -> None:
        """Note who gets a slot and who loses one in a step that begins now."""
        ledger = self._ledger
        for request_id in outcome.preempted:
            self._count(request_id, True, -1)
            self._count(request_id, False, 1)
            ledger.preemptions += 1
            ledger.last_token_s[request_id] = now
        is_batch = ledger.is_batch
        for request_id, _ in outcome.admitted:
            if is_batch[request_id]:
                self.waiting_batch -= 1
                self.running_batch += 1
            else:
                self.waiting_interactive -= 1
                self.running_interactive += 1
        self.kv_free_tokens = self.engine.kv_free_tokens
        if not self.message_due or self.phase is not _READY:
            self._on_change(self, now)

    def _publish(self, finished: Sequence[int], now: float) -> None:
        ledger = self._ledger
        ledger.finish(finished, now)
        submitted_s, is_batch = ledger.submitted_s, ledger.is_batch
        for request_id in finished:
            taken_s = now - submitted_s[request_id]
            if self._served_any:
                self.service_s += (taken_s - self.service_s) * _SMOOTHING
            else:
                self.service_s, self._served_any = taken_s, True
            if is_batch[request_id]:
                self.running_batch -= 1
                del self.batch_ids[request_id]
            else:
                self.running_interactive -= 1
        self.finished_since += finished
        self.history.finished.extend(finished)
        self._batch_changed = True
        self.kv_free_tokens = self.engine.kv_free_tokens
        if not self.message_due or self.phase is not _READY:
            self._on_change(self, now)

    def _count(self, request_id: int, running: bool, change: int) -> None:
        if self._ledger.is_batch[request_id]:
            if running:
                self.running_batch += change
            else:
                self.waiting_batch += change
        elif running:
            self.running_interactive += change
        else:
            self.waiting_interactive += change
