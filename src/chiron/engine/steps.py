"""Steps: how long they take and what they emit, one at a time or a run of identical ones at once."""

from bisect import bisect_left
from math import sqrt

from chiron.engine.outcome import Admission, StepOutcome
from chiron.engine.profiles import Profile
from chiron.engine.scheduler import Scheduler
from chiron.engine.step_time import DENSE_TOKENS, step_time_table

_new = tuple.__new__
"""Makes a named tuple without the call that its class adds; one is made for every step."""


class Stepper:
    """Takes the steps of one scheduler.

    Step time = profile's time at the tokens in the step
              + KV tokens that decoding requests read x time per KV token.
    """

    def __init__(self, profile: Profile, scheduler: Scheduler, report_emissions: bool) -> None:
        # Counters of EngineTotals.
        self.steps = 0
        self.prefill_tokens = 0
        self.emitted_tokens = 0
        self._scheduler = scheduler
        self._report_emissions = report_emissions
        table = step_time_table(profile.step_time_ms)
        self._base_s = table.seconds
        self._dense_s = table.dense
        self._kv_read_s = profile.kv_read_s_per_token

    def run_steps(self, max_steps: int | None) -> int:
        """Identical decode steps that can be taken at once; 0 when the next step must be scheduled."""
        scheduler = self._scheduler
        group = scheduler.decoding
        if scheduler.prefilling or not group.members:
            return 0
        # Blocks and slots only get scarcer during the run: a head kept out now is kept out until its end.
        if scheduler.waiting.size and scheduler.admissible(scheduler.prefill_room(0)) is not None:
            return 0
        steps = group.steps_to_finish()
        if max_steps is not None and max_steps < steps:
            steps = max_steps
        return group.steps_within(scheduler.pool.available, steps)

    def run_seconds(self, steps: int, time_factor: float) -> float:
        """Seconds that a run of decode steps takes."""
        group = self._scheduler.decoding
        size = len(group.members)
        if group.positions == 1:
            read = steps * group.context + size * (steps * (steps + 1) // 2)
        else:
            read = group.context_read(steps)
        positions = size * group.positions
        base_s = self._dense_s[positions] if positions < DENSE_TOKENS else self._base_s(positions)
        return time_factor * (steps * base_s + read * self._kv_read_s)

    def steps_begun_within(self, span_s: float, steps: int, time_factor: float) -> int:
        """Steps of the run that begin less than span_s from now."""

        if steps == 1:
            return 1
        group = self._scheduler.decoding
        if group.positions > 1:
            return 1 + bisect_left(
                range(1, steps), span_s, key=lambda count: self.run_seconds(count, time_factor)
            )
        # k steps take k (a + b k) seconds; the root is off by rounding alone, so neighbours settle it.
        read_s = time_factor * self._kv_read_s
        b = read_s * len(group.members) / 2
        a = time_factor * self._base_s(len(group.members)) + read_s * group.context + b
        count = int(2 * span_s / (a + sqrt(a * a + 4 * b * span_s)))
        count = min(max(count, 0), steps - 1)
        while count < steps - 1 and (count + 1) * (a + b * (count + 1)) < span_s:
            count += 1
        while count > 0 and count * (a + b * count) >= span_s:
            count -= 1
        return count + 1

    def take_run(self, steps: int, duration_s: float) -> StepOutcome:
        """Take a run no longer than run_steps() allows, which takes so many seconds."""
        group = self._scheduler.decoding
        positions = steps * group.positions * len(group.members)
        emissions: list[tuple[int, int]] = []
        emitted, finished = self._decode(steps, emissions)
        self.steps += steps
        self.emitted_tokens += emitted
        return _new(StepOutcome, (duration_s, steps, 0, positions, emitted, [], [], finished, [], emissions))

    def _decode(self, steps: int, emissions: list[tuple[int, int]]) -> tuple[int, list[int]]:
        """Advance the decoding requests; return how many tokens they emitted and who finished."""
        group = self._scheduler.decoding
        before = group.clock
        after = before + steps if group.positions == 1 else group.clock_after(steps)
        emitted = (after - before) * len(group.members)
        blocks = group.next_blocks() if steps == 1 else group.blocks_until(after)
        if blocks:
            self._scheduler.pool.take(blocks)
        ended = group.advance(steps)
        if self._report_emissions:
            clock = group.clock
            emissions.extend(
                (request_id, (clock if clock < sequence.finish_at else sequence.finish_at) - before)
                for request_id, sequence in group.members.items()
            )
        finished = []
        for sequence in ended:
            emitted -= group.clock - sequence.finish_at
            self._scheduler.finish(sequence)
            finished.append(sequence.request_id)
        return emitted, finished

    def take_mixed(self, time_factor: float) -> StepOutcome:
        """Schedule and take one step: decodes, prompts under way, admissions."""
        scheduler = self._scheduler
        preempted: list[int] = []
        scheduler.make_room_for_decodes(preempted)
        scheduled = scheduler.continue_prefills(preempted) if scheduler.prefilling else 0
        admitted: list[Admission] = []
        if not preempted:
            scheduled += scheduler.admit(scheduled, admitted)
        group = scheduler.decoding
        positions = group.positions * len(group.members)
        seconds = self._base_s(positions + scheduled)
        emitted = 0
        finished: list[int] = []
        emissions: list[tuple[int, int]] = []
        if positions:
            seconds += group.context_read(1) * self._kv_read_s
            emitted, finished = self._decode(1, emissions)
        first_tokens = []
        for sequence in scheduler.end_prefills():
            emitted += 1
            if sequence.emitted == 1:
                first_tokens.append(sequence.request_id)
            if self._report_emissions:
                emissions.append((sequence.request_id, 1))
            if sequence.emitted == sequence.output:
                scheduler.finish(sequence)
                finished.append(sequence.request_id)
        self.steps += 1
        self.prefill_tokens += scheduled
        self.emitted_tokens += emitted
        return _new(
            StepOutcome,
            (
                seconds * time_factor,
                1,
                scheduled,
                positions,
                emitted,
                admitted,
                first_tokens,
                finished,
                preempted,
                emissions,
            ),
        )
