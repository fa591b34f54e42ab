"""Steps: how long they take and what they emit, one at a time or a run of identical ones at once."""

from bisect import bisect_left
from heapq import heappop
from math import sqrt

from chiron.engine.outcome import Admission, StepOutcome
from chiron.engine.profiles import Profile
from chiron.engine.request import RequestPhase
from chiron.engine.scheduler import Scheduler
from chiron.engine.sequence import NOT_JOINED
from chiron.engine.step_time import DENSE_TOKENS, step_time_table

_new = tuple.__new__
"""Makes a named tuple without the call that its class adds; one is made for every step."""
_DECODING, _ENDED = RequestPhase.DECODING, RequestPhase.ENDED
"""Without the look-up in the enumeration."""


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
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self.scheduler = scheduler
        self.group = scheduler.decoding
        self.block_size = profile.block_size
        self._report_emissions = report_emissions
        table = step_time_table(profile.step_time_ms)
        self._base_s = table.seconds
        self.dense_s = table.dense
        self.kv_read_s = profile.kv_read_s_per_token

    def must_schedule(self) -> bool:
        """Whether the next step is not one of a run: a prompt is under way, or the queue's head fits."""
        scheduler, group = self.scheduler, self.group
        if scheduler.prefilling:
            return True
        # Blocks and slots only get scarcer during a run: a head kept out now is kept out until its end.
        return (
            scheduler.waiting.size > 0
            and len(group.members) < scheduler.batch_size
            and scheduler.prefill_room(0) > 0
            and scheduler.admissible(group.next_blocks()) >= 0
        )

    def run_steps(self, max_steps: int | None) -> int:
        """Identical decode steps that can be taken at once; 0 when the next step must be scheduled."""
        scheduler, group = self.scheduler, self.group
        size = len(group.members)
        if not size or self.must_schedule():
            return 0
        steps = group.steps_to_finish()
        if max_steps is not None and max_steps < steps:
            steps = max_steps
        # A member needs at most one block more than the whole blocks that it fills.
        available = scheduler.pool.available
        if size * (steps * group.positions // self.block_size + 1) <= available:
            return steps
        return group.steps_within(available, steps)

    def run_seconds(self, steps: int, time_factor: float) -> float:
        """Seconds that a run of decode steps takes."""
        group = self.group
        size = len(group.members)
        if group.positions == 1 and size < DENSE_TOKENS:
            read = steps * group.context + size * (steps * (steps + 1) // 2)
            return time_factor * (steps * self.dense_s[size] + read * self.kv_read_s)
        read = group.context_read(steps)
        return time_factor * (steps * self._base_s(size * group.positions) + read * self.kv_read_s)

    def steps_begun_within(self, span_s: float, steps: int, time_factor: float) -> int:
        """Steps of the run that begin less than span_s from now."""

        if steps == 1:
            return 1
        group = self.group
        if group.positions > 1:
            return 1 + bisect_left(
                range(1, steps), span_s, key=lambda count: self.run_seconds(count, time_factor)
            )
        # k steps take k (a + b k) seconds; the root is off by rounding alone, so neighbours settle it.
        read_s = time_factor * self.kv_read_s
        size = len(group.members)
        b = read_s * size / 2
        a = time_factor * self._base_s(size) + read_s * group.context + b
        count = int(2 * span_s / (a + sqrt(a * a + 4 * b * span_s)))
        if count >= steps:
            count = steps - 1
        while count < steps - 1 and (count + 1) * (a + b * (count + 1)) < span_s:
            count += 1
        while count > 0 and count * (a + b * count) >= span_s:
            count -= 1
        return count + 1

    def take_run(self, steps: int, duration_s: float) -> StepOutcome:
        """Take a run no longer than run_steps() allows, which takes so many seconds."""
        group = self.scheduler.decoding
        positions = steps * group.positions * len(group.members)
        emissions = self._emissions(steps) if self._report_emissions else []
        before = self.emitted_tokens
        finished = self.decode(steps)
        emitted = self.emitted_tokens - before
        return _new(StepOutcome, (duration_s, steps, 0, positions, emitted, [], [], finished, [], emissions))

    def decode(self, steps: int) -> list[int]:
        """Take a run no longer than run_steps() allows; return who finished."""
        group = self.group
        self.steps += steps
        if group.positions == 1:
            clock = group.clock + steps
        else:
            clock = group.clock_after(steps)
            self._count_drafts(steps, clock)
        return self._decode(steps, clock, group.blocks_until(clock))

    def _count_drafts(self, steps: int, clock: int) -> None:
        """Count what is drafted while the decoding requests advance to a clock."""
        group = self.group
        size = len(group.members)
        self.draft_tokens += steps * (group.positions - 1) * size
        self.accepted_tokens += (clock - group.clock - steps) * size

    def _decode(self, steps: int, clock: int, blocks: int) -> list[int]:
        """Advance the decoding requests to a clock, which takes so many blocks; return who finished.

        Nobody may finish before the last of the steps.
        """
        scheduler, group = self.scheduler, self.group
        pool, members = scheduler.pool, group.members
        if blocks:
            pool.take(blocks)
        emitted = (clock - group.clock) * len(members)
        group.context += emitted
        group.clock = clock
        group.steps += steps
        finished: list[int] = []
        heap = group.finish_heap
        # Every request that is served ends here: what DecodeGroup.leave() and Scheduler.finish() do, in one.
        while heap and heap[0][0] <= clock:
            finish_at, membership, sequence = heappop(heap)
            if sequence.membership != membership:
                continue
            request_id, offset = sequence.request_id, sequence.offset
            del members[request_id], scheduler.sequences[request_id]
            sequence.membership = NOT_JOINED
            sequence.phase = _ENDED
            computed = clock + offset
            group.context -= computed
            group.phases[-offset % self.block_size] -= 1
            held = sequence.held
            pool.available += -(-computed // self.block_size) - len(held)
            if held:
                pool.release(held)
            # Accepted drafts beyond the last token do not count.
            emitted -= clock - finish_at
            finished.append(request_id)
        self.emitted_tokens += emitted
        scheduler.finished += len(finished)
        return finished

    def _emissions(self, steps: int) -> list[tuple[int, int]]:
        """What each decoding request emits in so many steps to come."""
        group = self.scheduler.decoding
        before, after = group.clock, group.clock_after(steps)
        return [
            (request_id, (after if after < sequence.finish_at else sequence.finish_at) - before)
            for request_id, sequence in group.members.items()
        ]

    def take_mixed(self, time_factor: float) -> StepOutcome:
        """Schedule and take one step: decodes, prompts under way, admissions."""
        scheduler, group = self.scheduler, self.group
        if not scheduler.prefilling and scheduler.waiting.size == 1 and not self._report_emissions:
            outcome = self._take_newcomer(1, time_factor)
            if outcome is not None:
                return outcome
        preempted: list[int] = []
        blocks = group.next_blocks()
        if blocks > scheduler.pool.available:
            scheduler.make_room_for_decodes(preempted)
        scheduled = scheduler.continue_prefills(preempted) if scheduler.prefilling else 0
        admitted: list[Admission] = []
        if preempted:
            blocks = group.next_blocks()
        elif scheduler.waiting.size:
            scheduled += scheduler.admit(scheduled, blocks, admitted)
        return self._take_scheduled(1, blocks, scheduled, admitted, preempted, time_factor)

    def take_admitting(self, before: int, time_factor: float) -> StepOutcome | None:
        """Take decode steps of a run and one that admits as well; tell of that one alone.

        before: decode steps of a run, no prompt being under way, in which nobody finishes. None, and nothing
        is taken, if nobody is admissible then or single steps could do otherwise.
        """
        scheduler = self.scheduler
        group, pool = scheduler.decoding, scheduler.pool
        # Blocks that the run takes could evict cached ones that an admission would find.
        if group.positions > 1 or pool.caching or self._report_emissions or not scheduler.waiting.size:
            return None
        if scheduler.waiting.size == 1:
            outcome = self._take_newcomer(before + 1, time_factor)
            if outcome is not None:
                return outcome
        blocks = group.blocks_until(group.clock + before + 1)
        if blocks > pool.available:
            return None
        admitted: list[Admission] = []
        scheduled = scheduler.admit(0, blocks, admitted)
        if not admitted:
            return None
        self.steps += before
        return self._take_scheduled(before + 1, blocks, scheduled, admitted, [], time_factor)

    def _take_newcomer(self, steps: int, time_factor: float) -> StepOutcome | None:
        """Take decode steps in the last of which the only request that waits is admitted whole, and tell of
        that one; None, and nothing is taken, if the general way must be gone.

        As admit(), end_prefills() and _take_scheduled() do together: most requests come in like this.
        """
        scheduler, group = self.scheduler, self.group
        pool, members, block_size = scheduler.pool, group.members, self.block_size
        sequence = scheduler.waiting.head()
        if sequence is None or sequence.hashes or sequence.restored or group.positions > 1:
            return None
        size = len(members)
        target = sequence.prompt + sequence.emitted
        positions = size + target
        if size >= scheduler.batch_size or positions > scheduler.step_token_budget:
            return None
        clock = group.clock + steps
        decode_blocks = group.phases[group.clock % block_size] if steps == 1 else group.blocks_until(clock)
        blocks = -(-target // block_size)
        if blocks + decode_blocks > pool.available:
            return None
        scheduler.waiting.pop()
        pool.take(blocks)
        seconds = self.dense_s[positions] if positions <= DENSE_TOKENS else self._base_s(positions)
        finished: list[int] = []
        if size:
            seconds += (group.context + size * steps) * self.kv_read_s
            finished = self._decode(steps, clock, decode_blocks)
        self.emitted_tokens += 1
        self.steps += steps
        self.prefill_tokens += target
        sequence.published = 0
        if not sequence.preemptions:
            sequence.cached_tokens = 0
        request_id = sequence.request_id
        sequence.computed = target
        sequence.emitted += 1
        sequence.phase = _DECODING
        group.join(sequence)
        if sequence.emitted == sequence.output:
            group.leave(sequence)
            finished += scheduler.finish([sequence])
        first_tokens = [request_id] if sequence.emitted == 1 else []
        return _new(
            StepOutcome,
            (
                seconds * time_factor,
                1,
                target,
                size,
                size + 1,
                [_new(Admission, (request_id, 0))],
                first_tokens,
                finished,
                [],
                [],
            ),
        )

    def _take_scheduled(
        self,
        steps: int,
        blocks: int,
        scheduled: int,
        admitted: list[Admission],
        preempted: list[int],
        time_factor: float,
    ) -> StepOutcome:
        """Compute the tokens scheduled, in the last of so many decode steps, and tell of that one."""
        scheduler = self.scheduler
        group = scheduler.decoding
        size = len(group.members)
        positions = group.positions * size
        seconds = self._base_s(positions + scheduled)
        finished: list[int] = []
        emissions: list[tuple[int, int]] = []
        emitted = 0
        if size:
            if group.positions == 1:
                clock = group.clock + steps
                read = group.context + size * steps
            else:
                clock = group.clock_after(steps)
                read = group.context_read(1)
                self._count_drafts(steps, clock)
            seconds += read * self.kv_read_s
            if self._report_emissions:
                emissions = self._emissions(1)
            emitted -= self.emitted_tokens
            finished = self._decode(steps, clock, blocks)
            emitted += self.emitted_tokens - (steps - 1) * size
        first_tokens = []
        if scheduler.prefilling:
            ended = []
            done = scheduler.end_prefills()
            self.emitted_tokens += len(done)
            emitted += len(done)
            for sequence in done:
                if sequence.emitted == 1:
                    first_tokens.append(sequence.request_id)
                if self._report_emissions:
                    emissions.append((sequence.request_id, 1))
                if sequence.emitted == sequence.output:
                    group.leave(sequence)
                    ended.append(sequence)
            if ended:
                finished += scheduler.finish(ended)
        self.steps += 1
        self.prefill_tokens += scheduled
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
