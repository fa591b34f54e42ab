"""Decode runs planned ahead of their time, for a driver that sleeps until something happens."""

from __future__ import annotations

from chiron.engine.errors import EngineStateError
from chiron.engine.outcome import StepOutcome
from chiron.engine.step_time import DENSE_TOKENS
from chiron.engine.steps import Stepper


class RunAhead:
    """The run of identical decode steps that lies ahead of one engine.

    The driver plans it and sets its alarm to the run's end. If a request comes before, it cuts the run short
    at the step under way. At the alarm it takes the run, alone or together with the step that admits who has
    come since. Requests may be submitted while a run is planned and wait for its end; anything else that
    changes the engine drops the plan, and taking it is refused.
    """

    __slots__ = (
        "_factor",
        "_group",
        "_scheduler",
        "_stepper",
        "cut_short",
        "duration_s",
        "positions",
        "steps",
    )

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._scheduler = stepper.scheduler
        self._group = stepper.group
        self._factor = 1.0
        self.steps = 0
        """Steps of the run, up to the first in which a request finishes or KV blocks run out; 0: no plan."""
        self.duration_s = 0.0
        """Seconds that they take together."""
        self.positions = 0
        """Token positions that they compute, draft tokens included."""
        self.cut_short = False
        """It ends before anybody finishes."""

    def plan(self, time_factor: float, max_steps: int | None = None) -> bool:
        """Plan the run that begins now; False when the next step must be scheduled or there is nothing to do.

        time_factor: multiplies the duration of its steps.
        """
        self.cut_short = False
        self._factor = time_factor
        stepper, scheduler, group = self._stepper, self._scheduler, self._group
        size = len(group.members)
        if not size or ((scheduler.prefilling or scheduler.waiting.size) and stepper.must_schedule()):
            self.steps = 0
            return False
        if group.positions > 1 or size > DENSE_TOKENS:
            self.steps = steps = stepper.run_steps(max_steps)
            if not steps:
                return False
            self.duration_s = stepper.run_seconds(steps, time_factor)
            self.positions = steps * group.positions * size
            return True
        # What run_steps() and run_seconds() do, in one: a run is planned for nearly every request.
        finish_at, membership, sequence = group.finish_heap[0]
        steps = finish_at - group.clock if sequence.membership == membership else group.steps_to_finish()
        if max_steps is not None and max_steps < steps:
            steps = max_steps
        available = scheduler.pool.available
        if size * (steps // stepper.block_size + 1) > available:
            steps = group.steps_within(available, steps)
        self.steps = steps
        if not steps:
            return False
        self.positions = steps * size
        read = steps * group.context + size * (steps * (steps + 1) // 2)
        self.duration_s = time_factor * (steps * stepper.dense_s[size] + read * stepper.kv_read_s)
        return True

    def cut(self, span_s: float) -> None:
        """Keep only the steps that begin less than span_s (> 0) after the run does."""
        steps = self.steps
        if steps == 1:
            return
        stepper, factor = self._stepper, self._factor
        kept = stepper.steps_begun_within(span_s, steps, factor)
        if kept < steps:
            self.positions = self.positions // steps * kept
            self.steps = kept
            self.duration_s = stepper.run_seconds(kept, factor)
            self.cut_short = True

    def take(self) -> list[int]:
        """Take the run; return who finished. EngineStateError without a plan. Emissions are not reported."""
        steps = self.steps
        if not steps:
            raise EngineStateError("cannot take a run: none is planned")
        self.steps = 0
        return self._stepper.decode(steps)

    def take_into_step(self, time_factor: float) -> StepOutcome | None:
        """Take a run that was cut short and, at once, the step after it, which admits who has come since.

        The outcome is that step's alone. None, and nothing is taken, when nobody can be admitted or the two
        must be taken one by one.
        """
        if not self.cut_short:
            return None
        outcome = self._stepper.take_admitting(self.steps, time_factor)
        if outcome is not None:
            self.steps = 0
        return outcome
