"""One simulated instance: its engine, planned ahead and interrupted, and what it measures of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappush
from math import isnan

from chiron.engine import EngineModel, RequestPhase, StepOutcome
from chiron.policy.snapshots import HANDED_OVER
from chiron.policy.words import Phase, Role
from chiron.sim.agenda import Agenda
from chiron.sim.gaps import LongestStep
from chiron.sim.ledger import Ledger
from chiron.sim.noise import StepNoise
from chiron.sim.seen import Seen
from chiron.sim.settings import SimModel, SimSettings
from chiron.sim.step_history import StepHistory

_SMOOTHING = 0.1
_NOBODY: Sequence[int] = ()
_READY = Phase.READY
"""A ready instance whose load message is under way has nobody to tell of another change."""
DEFAULT_SERVICE_S = 2.0
"""Assumed time that a request keeps its slot until one has ended, as the router assumes it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What of an instance never changes."""

    instance_id: str
    number: int
    """In order of start, over all models."""
    model_index: int
    node_id: str
    gpu_indexes: tuple[int, ...]


class SimInstance:
    """Drives one engine by alarms.

    Between alarms the engine stands at the beginning of a planned decode run, or (after an interruption)
    at the boundary where its next step begins, with what the step under way finishes kept back until then.
    """

    def __init__(
        self,
        identity: Identity,
        model: SimModel,
        role: Role,
        settings: SimSettings,
        agenda: Agenda,
        ledger: Ledger,
        on_change: Callable[[SimInstance, float], None],
    ) -> None:
        self.identity = identity
        self.model = model
        self.role = role
        self.phase = Phase.LOADING
        self.phase_since_s = 0.0
        self.waking = False
        self.dead = False
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
        self.reloading: dict[int, int] = {}
        """Requests whose KV cache is being copied back, and its tokens."""
        self.kv_free_tokens = self.engine.kv_free_tokens
        """As of the last change in the batch."""
        self.service_s = DEFAULT_SERVICE_S
        self.itl_s = 0.0
        self.tokens_per_s = 0.0
        """Output tokens per second over the last sample, as measured."""
        self.safe_batch_size = model.initial_batch_size
        self.message_due = False
        self.seen = Seen(self)
        self.steps_taken: list[tuple[float, int, int, bool]] = []
        """(duration, steps, decode positions, whether slots were taken or requests waited) since the last
        sample."""
        self.finished_since: list[int] = []
        self._full_at = model.initial_batch_size * HANDED_OVER
        self._longest = LongestStep()
        self._history = StepHistory()
        self._agenda = agenda
        self._ledger = ledger
        self._on_change = on_change
        self._noise = StepNoise(settings, identity.number)
        self._single = 1 if settings.single_steps else None
        self._kv_read_s = model.profile.kv_read_s_per_token
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
        self._served_any = False

    @property
    def instance_id(self) -> str:
        """Unique id."""
        return self.identity.instance_id

    @property
    def claim(self) -> tuple[str, tuple[int, ...]]:
        """Its node, and the indexes of its GPUs there."""
        return self.identity.node_id, self.identity.gpu_indexes

    @property
    def empty(self) -> bool:
        """Whether no request waits or runs, results of the step under way included."""
        return self._idle and not self.reloading

    def submit(self, request_id: int, now: float, restored_tokens: int = 0) -> None:
        """Take a request; the engine considers it when its next step begins."""
        engine = self.engine
        if self._ahead.steps and not self._interrupted and not engine.full:
            self._interrupt(now)
        engine.submit(self._ledger.engine_request(request_id, restored_tokens))
        self._ledger.submitted_s[request_id] = now
        if self._ledger.is_batch[request_id]:
            self.waiting_batch += 1
            self.batch_ids[request_id] = None
        else:
            self.waiting_interactive += 1
        if self._idle:
            self._idle = False
            self._begin(now)
        if not self.message_due or self.phase is not _READY:
            self._on_change(self, now)

    def reload(self, request_id: int, tokens: int, takes_s: float, now: float) -> None:
        """Take a request whose KV cache is copied back first, beside the engine's steps."""
        self.reloading[request_id] = tokens
        self.waiting_batch += 1
        self._agenda.at(now + takes_s, self._reloaded, request_id)
        self._on_change(self, now)

    def _reloaded(self, now: float, request_id: int) -> None:
        tokens = self.reloading.pop(request_id, None)
        if tokens is not None:
            self.waiting_batch -= 1
            self.submit(request_id, now, tokens)

    def set_limits(self, batch_size: int, step_token_budget: int, now: float) -> None:
        """Set the engine's limits from its next step on."""
        engine = self.engine
        if (batch_size, step_token_budget) != (engine.batch_size, engine.step_token_budget):
            self.settle(now)
            engine.set_batch_size(batch_size)
            self._full_at = batch_size * HANDED_OVER
            engine.set_step_token_budget(step_token_budget)
            self._on_change(self, now)

    def remove(self, request_id: int, now: float) -> int | None:
        """Give a request up at the end of the step under way.

        Return the tokens in its KV cache, or None when that step finishes it.
        """
        if self.reloading.pop(request_id, None) is not None:
            self.waiting_batch -= 1
            return 0
        self.settle(now)
        engine = self.engine
        if request_id not in engine:
            return None
        progress = engine.progress(request_id)
        engine.abort(request_id)
        self._count(request_id, progress.phase is not RequestPhase.WAITING, -1)
        if self._ledger.is_batch[request_id]:
            del self.batch_ids[request_id]
        self._ledger.put_back(request_id, progress.emitted_tokens, now)
        self._batch_changed = True
        self.kv_free_tokens = engine.kv_free_tokens
        self._on_change(self, now)
        return progress.computed_tokens

    def request_ids(self, now: float) -> list[int]:
        """All that run or wait, running ones first, at the end of the step under way."""
        self.settle(now)
        return [*self.engine.running_ids(), *self.engine.waiting_ids(), *self.reloading]

    def held_ids(self) -> list[int]:
        """All that the instance has and has not published as finished, as its engine stands."""
        engine = self.engine
        return [*engine.running_ids(), *engine.waiting_ids(), *self.reloading, *self._finished]

    def emitted_of(self, request_id: int) -> int:
        """Tokens that the engine has emitted of a request that it holds."""
        if request_id in self.engine:
            return self.engine.progress(request_id).emitted_tokens
        if request_id in self.reloading:
            return 0
        ledger = self._ledger
        return ledger.output_tokens[request_id] - ledger.delivered.get(request_id, 0)

    def settle(self, now: float) -> None:
        """Bring the engine up to the boundary at which its next step begins."""
        if not self._ahead.steps:
            return
        if not self._interrupted:
            self._interrupt(now)
        if self._ahead.steps:
            self._finished = self._take_run()

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

    def _take_run(self) -> list[int]:
        """Take the planned run; return whom it finishes, to be published at its end."""
        ahead = self._ahead
        end_s = self._start + ahead.duration_s
        self._book(end_s, ahead.duration_s, ahead.steps, ahead.positions, self._was_full)
        return ahead.take()

    def publish_now(self, now: float) -> None:
        """Publish what the step under way finishes without waiting for its end."""
        finished, self._finished = self._finished, _NOBODY
        if finished:
            self._publish(finished, now)

    def kill(self) -> None:
        """Stop for good; what the engine holds must have been removed."""
        self.dead = True
        self._alarm = -1
        self._idle = True

    def _set_alarm(self, time_s: float) -> None:
        # As Agenda.at does: every step comes by here.
        agenda = self._agenda
        agenda.count = self._alarm = alarm = agenda.count + 1
        heappush(agenda.heap, (time_s, alarm, self._on_alarm, alarm))

    def _wake(self, now: float, alarm: int) -> None:
        if alarm != self._alarm:
            return
        finished = self._finished
        ahead = self._ahead
        if ahead.steps:
            full = self._was_full if self._interrupted else self._full()
            run = now, ahead.duration_s, ahead.steps, ahead.positions, full
            outcome = ahead.take_into_step(self._factor)
            self._book(*run)
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
            self._factor = self._noise.draw()
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
            first = self._ledger.first_token_s
            for request_id in first_tokens:
                if isnan(first[request_id]):
                    first[request_id] = end_s
        if admitted or preempted:
            self._move(outcome, now, end_s)
        self._book(end_s, duration_s, 1, positions, self._full())
        if finished:
            self._finished = finished
            self._batch_changed = True
            self._set_alarm(end_s)
            return
        self._factor = factor = self._noise.draw()
        ahead = self._ahead
        if ahead.plan(factor, self._single):
            self._start = end_s
            self._interrupted = False
            end_s += ahead.duration_s
        self._set_alarm(end_s)

    def _full(self) -> bool:
        """Whether slots are taken or requests wait."""
        running = self.running_interactive + self.running_batch
        return running >= self._full_at or self.waiting_interactive + self.waiting_batch > 0

    def _book(self, end_s: float, duration_s: float, steps: int, positions: int, full: bool) -> None:
        """Note steps that end then; what they finish is published then."""
        self.steps_taken.append((duration_s, steps, positions, full))
        if not positions:
            return
        longest_s = mean_s = duration_s / steps
        if steps > 1:
            # Steps of a run lengthen evenly with the KV tokens that they read.
            longest_s += self._kv_read_s * positions / steps * self._factor * (steps - 1) / 2
        self._longest.add(end_s, longest_s)
        history = self._history
        history.ends_s.append(end_s)
        history.durations_s.append(mean_s)
        history.steps.append(steps)

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
            if ledger.last_token_s:
                ledger.end_gap(request_id, end_s)
        self.kv_free_tokens = self.engine.kv_free_tokens
        if not self.message_due or self.phase is not _READY:
            self._on_change(self, now)

    def _publish(self, finished: Sequence[int], now: float) -> None:
        ledger = self._ledger
        for request_id in finished:
            ledger.finish(request_id, now)
            taken_s = now - ledger.submitted_s[request_id]
            if self._served_any:
                self.service_s += (taken_s - self.service_s) * _SMOOTHING
            else:
                self.service_s, self._served_any = taken_s, True
            if ledger.is_batch[request_id]:
                self.running_batch -= 1
                del self.batch_ids[request_id]
            else:
                self.running_interactive -= 1
                gap_s = self._longest.since(ledger.first_token_s[request_id])
                if gap_s > ledger.longest_gap_s[request_id]:
                    ledger.longest_gap_s[request_id] = gap_s
                if not request_id % ledger.look_every:
                    ledger.looked_at.append((request_id, self._history))
        self.finished_since += finished
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
