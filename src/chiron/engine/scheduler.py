"""Which tokens a step computes: slots, chunked prefill, KV blocks, preemption."""

from bisect import insort

from chiron.engine.decode import DecodeGroup
from chiron.engine.errors import EngineStateError
from chiron.engine.kv import BlockPool
from chiron.engine.outcome import Admission
from chiron.engine.profiles import Profile
from chiron.engine.request import RequestPhase
from chiron.engine.sequence import Sequence
from chiron.engine.waiting import WaitingQueue

_new = tuple.__new__
"""Makes a named tuple without the call that its class adds."""

_WAITING, _PREFILLING, _DECODING, _ENDED = RequestPhase
"""Without the look-up in the enumeration: each request passes through all of them."""


def _by_key(sequence: Sequence) -> tuple[int, int]:
    return sequence.key


class Scheduler:
    """The requests of one engine, and the rules by which they get slots, step tokens and KV blocks."""

    def __init__(self, profile: Profile) -> None:
        self.batch_size = 1
        self.step_token_budget = 1
        self.pool = BlockPool(profile.kv_blocks)
        self.sequences: dict[int, Sequence] = {}
        self.waiting = WaitingQueue()
        # Ascending by key.
        self.prefilling: list[Sequence] = []
        self.decoding = DecodeGroup(profile.block_size, profile.speculation)
        # Counters of EngineTotals.
        self.finished = 0
        self.preemptions = 0
        self.cached_tokens = 0
        self._block_size = profile.block_size

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self.decoding.members) + len(self.prefilling)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.sequences[sequence.request_id] = sequence
        self.waiting.push(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to wait at the place that its key gives it."""
        self._stop_running(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        sequence.phase = _WAITING
        self.waiting.push(sequence)

    def end(self, sequence: Sequence) -> None:
        """Drop a sequence, waiting or running, and free what it holds."""
        was_waiting = sequence.phase is _WAITING
        if not was_waiting:
            self._stop_running(sequence)
        sequence.phase = _ENDED
        if was_waiting:
            self.waiting.discard(sequence)
        del self.sequences[sequence.request_id]

    def finish(self, ended: list[Sequence]) -> list[int]:
        """End sequences that have emitted their last token and left the decode group; return their ids."""
        pool, sequences, block_size = self.pool, self.sequences, self._block_size
        finished = []
        for sequence in ended:
            sequence.phase = _ENDED
            held = sequence.held
            pool.available += -(-sequence.computed // block_size) - len(held)
            if held:
                pool.release(held)
            request_id = sequence.request_id
            del sequences[request_id]
            finished.append(request_id)
        self.finished += len(finished)
        return finished

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def prefill_room(self, scheduled: int) -> int:
        """Step tokens left beside the decodes and the prompt tokens scheduled so far; may be negative."""
        group = self.decoding
        return self.step_token_budget - group.positions * len(group.members) - scheduled

    def make_room_for_decodes(self, preempted: list[int]) -> None:
        """Preempt until the decoding sequences have the blocks of their next step; list who was preempted."""
        while self.decoding.next_blocks() > self.pool.available:
            self._preempt_last(preempted)

    def continue_prefills(self, preempted: list[int]) -> int:
        """Compute chunks of the prompts under way; return the tokens, list who was preempted."""
        # Ascending keys: whoever is preempted for a prompt comes after it; no chunk taken here is undone.
        scheduled = 0
        for sequence in tuple(self.prefilling):
            room = self.prefill_room(scheduled)
            if room <= 0:
                break
            if sequence.phase is not _PREFILLING:
                continue
            chunk = min(room, sequence.target - sequence.computed)
            blocks = self._blocks(sequence.computed + chunk) - self._blocks(sequence.computed)
            while blocks + self.decoding.next_blocks() > self.pool.available:
                if self._preempt_last(preempted) is sequence:
                    break
            else:
                self._compute(sequence, chunk, blocks)
                scheduled += chunk
        return scheduled

    def admissible(self, decode_blocks: int) -> int:
        """Cached leading blocks of the queue's head if a slot and KV blocks are free for it now, else -1.

        decode_blocks: what the decoding sequences need in this step.
        """
        if len(self.decoding.members) + len(self.prefilling) >= self.batch_size:
            return -1
        sequence = self.waiting.head()
        if sequence is None:
            return -1
        target = sequence.prompt + sequence.emitted
        hits = idle = 0
        if sequence.hashes:
            # The last token is always computed: its output is what the first token is sampled from.
            hits, idle = self.pool.match(sequence.hashes, (target - 1) // self._block_size)
        blocks = -(-target // self._block_size) - hits + idle
        return hits if blocks + decode_blocks <= self.pool.available else -1

    def admit(self, scheduled: int, decode_blocks: int, admitted: list[Admission]) -> int:
        """Admit from the queue beside prompt tokens scheduled already; return the tokens added."""
        waiting, prefilling, block_size = self.waiting, self.prefilling, self._block_size
        group = self.decoding
        room = left = self.step_token_budget - group.positions * len(group.members) - scheduled
        while left > 0 and waiting.size and (hits := self.admissible(decode_blocks)) >= 0:
            sequence = waiting.pop()
            computed = 0
            if hits:
                self.pool.acquire(sequence.hashes[:hits])
                sequence.held = list(sequence.hashes[:hits])
                computed = hits * block_size
                self.cached_tokens += computed
            sequence.published = hits
            if not sequence.preemptions:
                sequence.cached_tokens = computed
            if sequence.restored:
                if sequence.restored > computed:
                    computed = sequence.restored
                sequence.restored = 0
            admitted.append(_new(Admission, (sequence.request_id, computed)))
            chunk = sequence.prompt + sequence.emitted - computed
            if chunk > left:
                chunk = left
            left -= chunk
            sequence.computed = computed
            sequence.phase = _PREFILLING
            self._compute(sequence, chunk, -(-(computed + chunk) // block_size) - hits)
            if prefilling:
                insort(prefilling, sequence, key=_by_key)
            else:
                prefilling.append(sequence)
        return room - left

    def _compute(self, sequence: Sequence, chunk: int, blocks: int) -> None:
        self.pool.take(blocks)
        sequence.computed += chunk
        hashes = sequence.hashes
        if not hashes:
            return
        full = min(len(hashes), sequence.computed // self._block_size)
        for block_hash in hashes[sequence.published : full]:
            if self.pool.publish(block_hash):
                sequence.held.append(block_hash)
        sequence.published = max(sequence.published, full)

    def end_prefills(self) -> list[Sequence]:
        """Let each sequence whose prompt is computed emit one token and decode from now on; return them."""
        done: list[Sequence] = []
        under_way: list[Sequence] = []
        join = self.decoding.join
        for sequence in self.prefilling:
            if sequence.computed == sequence.prompt + sequence.emitted:
                sequence.emitted += 1
                sequence.phase = _DECODING
                join(sequence)
                done.append(sequence)
            else:
                under_way.append(sequence)
        self.prefilling = under_way
        return done

    def _stop_running(self, sequence: Sequence) -> None:
        """Take a running sequence's slot and blocks away."""
        if sequence.phase is _DECODING:
            self.decoding.leave(sequence)
        else:
            self.prefilling.remove(sequence)
        held = sequence.held
        self.pool.give_back(-(-sequence.computed // self._block_size) - len(held))
        if held:
            self.pool.release(held)
            sequence.held = []
        sequence.computed = 0

    def _preempt_last(self, preempted: list[int]) -> Sequence:
        """Preempt the running sequence with the largest (priority, arrival)."""
        last = max(self.decoding.members.values(), key=_by_key, default=None)
        if self.prefilling and (last is None or self.prefilling[-1].key > last.key):
            last = self.prefilling[-1]
        if last is None:
            raise EngineStateError("no running request to preempt, yet KV blocks are missing")
        self.preempt(last)
        preempted.append(last.request_id)
        return last
