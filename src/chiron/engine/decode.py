"""The decoding requests, advanced together in time that does not grow with their number."""

from heapq import heappop, heappush
from math import ceil, floor

from chiron.engine.sequence import NOT_JOINED, Sequence
from chiron.engine.speculation import Speculation


class DecodeGroup:
    """Requests that all receive the same number of tokens in every decode step.

    `clock` counts the tokens that each member has received since the engine began. A member's KV tokens are
    clock + its offset, it ends when the clock reaches its finish_at, and it needs a block whenever the
    clock reaches its phase modulo the block size. So a step, or a run of steps, costs O(block size +
    members that finish).
    """

    __slots__ = (
        "_block_size",
        "_memberships",
        "_tokens_per_step",
        "clock",
        "context",
        "finish_heap",
        "members",
        "phases",
        "positions",
        "steps",
    )

    def __init__(self, block_size: int, speculation: Speculation | None) -> None:
        self.members: dict[int, Sequence] = {}
        self.clock = 0
        # Sum of the members' KV tokens.
        self.context = 0
        # Token positions that one member occupies in a step: one, and its draft tokens.
        self.positions = 1 if speculation is None else 1 + speculation.draft_tokens
        self._tokens_per_step = 1.0 if speculation is None else speculation.tokens_per_step
        # Decode steps taken.
        self.steps = 0
        # Members by phase: how many need a block when the clock, modulo the block size, shows the index.
        self.phases = [0] * block_size
        # (clock at the last token, membership, sequence); one whose membership has ended is skipped.
        self.finish_heap: list[tuple[int, int, Sequence]] = []
        self._block_size = block_size
        self._memberships = 0

    def join(self, sequence: Sequence) -> None:
        """Add a sequence whose prompt is computed and that has tokens left to emit."""
        clock, computed = self.clock, sequence.computed
        offset = sequence.offset = computed - clock
        finish_at = sequence.finish_at = clock + sequence.output - sequence.emitted
        membership = sequence.membership = self._memberships
        self._memberships = membership + 1
        self.members[sequence.request_id] = sequence
        self.context += computed
        self.phases[-offset % self._block_size] += 1
        heappush(self.finish_heap, (finish_at, membership, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Remove a sequence and settle its counts. `Stepper` does so by itself for those that finish."""
        del self.members[sequence.request_id]
        clock = self.clock
        computed = clock + sequence.offset
        sequence.computed = computed
        left = sequence.finish_at - clock
        sequence.emitted = sequence.output - left if left > 0 else sequence.output
        sequence.membership = NOT_JOINED
        self.context -= computed
        self.phases[-sequence.offset % self._block_size] -= 1

    def emitted(self, sequence: Sequence) -> int:
        """Tokens that a member has emitted; accepted drafts beyond its last token do not count."""
        return sequence.output - max(0, sequence.finish_at - self.clock)

    def progress(self, min_emitted_tokens: int) -> list[tuple[int, int, int]]:
        """(request id, computed tokens, emitted tokens) of members that emitted at least so many."""
        clock = self.clock
        return [
            (request_id, clock + sequence.offset, emitted)
            for request_id, sequence in self.members.items()
            if (emitted := sequence.output - max(0, sequence.finish_at - clock)) >= min_emitted_tokens
        ]

    def clock_after(self, steps: int) -> int:
        """Return what the clock shows after this many more steps."""
        if self.positions == 1:
            return self.clock + steps
        return floor((self.steps + steps) * self._tokens_per_step)

    def steps_to_finish(self) -> int:
        """Steps until the first member finishes, that step included; the group must not be empty."""
        heap = self.finish_heap
        target, membership, sequence = heap[0]
        while sequence.membership != membership:
            heappop(heap)
            target, membership, sequence = heap[0]
        if self.positions == 1:
            return target - self.clock
        steps = max(1, ceil(target / self._tokens_per_step) - self.steps)
        # The division rounds; the clock itself decides.
        while steps > 1 and self.clock_after(steps - 1) >= target:
            steps -= 1
        while self.clock_after(steps) < target:
            steps += 1
        return steps

    def blocks_until(self, clock: int) -> int:
        """Blocks that the members need beyond those they have, for the clock to reach this value."""
        size = self._block_size
        now = self.clock
        first = now % size
        phases = self.phases
        rest = clock - now
        if rest == 1:
            return phases[first]
        blocks = 0
        if rest >= size:
            cycles, rest = divmod(rest, size)
            blocks = cycles * len(self.members)
        if rest:
            if first + rest <= size:
                blocks += sum(phases[first : first + rest])
            else:
                blocks += sum(phases[first:]) + sum(phases[: first + rest - size])
        return blocks

    def next_blocks(self) -> int:
        """Blocks that the members need beyond those they have for one more step."""
        if self.positions == 1:
            return self.phases[self.clock % self._block_size]
        return self.blocks_until(self.clock_after(1))

    def steps_within(self, blocks: int, most_steps: int) -> int:
        """Return how many steps, 0 to most_steps, so many blocks suffice for."""
        # A member needs at most one block more than the whole blocks that it fills.
        growth = most_steps if self.positions == 1 else self.clock_after(most_steps) - self.clock
        if len(self.members) * (growth // self._block_size + 1) <= blocks:
            return most_steps
        if self.blocks_until(self.clock_after(most_steps)) <= blocks:
            return most_steps
        enough, too_many = 0, most_steps
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if self.blocks_until(self.clock_after(middle)) <= blocks:
                enough = middle
            else:
                too_many = middle
        return enough

    def context_read(self, steps: int) -> int:
        """KV tokens that decode attention reads over so many steps, those written in a step included."""
        size = len(self.members)
        if self.positions == 1:
            return steps * self.context + size * (steps * (steps + 1) // 2)
        clock = self.clock
        received = sum(self.clock_after(step) - clock for step in range(1, steps + 1))
        return steps * self.context + size * received
