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
        sequence.phase = RequestPhase.WAITING
        self.waiting.push(sequence)

    def end(self, sequence: Sequence) -> None:
        """Drop a sequence, waiting or running, and free what it holds."""
        was_waiting = sequence.phase is RequestPhase.WAITING
        if not was_waiting:
            self._stop_running(sequence)
        sequence.phase = RequestPhase.ENDED
        if was_waiting:
            self.waiting.discard(sequence)
        del self.sequences[sequence.request_id]

    def finish(self, sequence: Sequence) -> None:
        """End a decoding sequence that has emitted its last token."""
        self._stop_running(sequence)
        sequence.phase = RequestPhase.ENDED
        del self.sequences[sequence.request_id]
        self.finished += 1

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
            if sequence.phase is not RequestPhase.PREFILLING:
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

    def admissible(self, room: int) -> tuple[Sequence, int] | None:
        """Return the queue's head and its cached leading blocks, if it may take a slot now."""
        if room <= 0 or len(self.decoding.members) + len(self.prefilling) >= self.batch_size:
            return None
        sequence = self.waiting.head()
        if sequence is None:
            return None
        target = sequence.prompt + sequence.emitted
        hits = idle = 0
        if sequence.hashes:
            # The last token is always computed: its output is what the first token is sampled from.
            hits, idle = self.pool.match(sequence.hashes, (target - 1) // self._block_size)
        blocks = -(-target // self._block_size) - hits + idle
        if blocks + self.decoding.next_blocks() > self.pool.available:
            return None
        return sequence, hits

    def admit(self, scheduled: int, admitted: list[Admission]) -> int:
        """Admit from the queue beside prompt tokens scheduled already; return the tokens added."""
        added = 0
        while self.waiting.size:
            room = self.prefill_room(scheduled + added)
            head = self.admissible(room)
            if head is None:
                break
            sequence, hits = head
            self.waiting.pop()
            if hits:
                self.pool.acquire(sequence.hashes[:hits])
                sequence.held = list(sequence.hashes[:hits])
            sequence.published = hits
            sequence.computed = hits * self._block_size
            if not sequence.preemptions:
                sequence.cached_tokens = sequence.computed
            self.cached_tokens += sequence.computed
            if sequence.restored > sequence.computed:
                sequence.computed = sequence.restored
            sequence.restored = 0
            sequence.phase = RequestPhase.PREFILLING
            if self.prefilling:
                insort(self.prefilling, sequence, key=_by_key)
            else:
                self.prefilling.append(sequence)
            admitted.append(Admission(sequence.request_id, sequence.computed))
            chunk = min(room, sequence.target - sequence.computed)
            self._compute(sequence, chunk, self._blocks(sequence.computed + chunk) - hits)
            added += chunk
        return added

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
        for sequence in self.prefilling:
            ended = sequence.computed == sequence.prompt + sequence.emitted
            (done if ended else under_way).append(sequence)
        self.prefilling = under_way
        for sequence in done:
            sequence.emitted += 1
            sequence.phase = RequestPhase.DECODING
            self.decoding.join(sequence)
        return done

    def _stop_running(self, sequence: Sequence) -> None:
        """Take a running sequence's slot and blocks away."""
        if sequence.phase is RequestPhase.DECODING:
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
