"""The engine model against a naive one that counts every token of every request in every step."""

from dataclasses import dataclass
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from chiron.engine import EngineModel, EngineRequest, RequestPhase, Speculation, get_profile

BLOCK = 4
BLOCKS = 10
CONTEXT = 40
PROFILE = get_profile("toy").replace(
    block_size=BLOCK, kv_capacity_tokens=BLOCK * BLOCKS, max_context_tokens=CONTEXT, kv_bytes_per_token=10**8
)


def base_s(tokens):
    return 0.002 + 0.00001 * tokens


def blocks(tokens):
    return -(-tokens // BLOCK)


@dataclass
class Naive:
    """One request of the naive model; the blocks it holds follow from the tokens computed."""

    request_id: int
    key: tuple[int, int]
    prompt: int
    output: int
    state: str = "waiting"
    emitted: int = 0
    computed: int = 0
    target: int = 0


class NaiveEngine:
    """The scheduling rules, written token by token; no prefix cache."""

    def __init__(self, batch_size, budget, speculation):
        self.batch_size, self.budget, self.speculation = batch_size, budget, speculation
        self.positions = 1 if speculation is None else 1 + speculation.draft_tokens
        self.requests: dict[int, Naive] = {}
        self.decode_steps = 0

    def in_state(self, *states):
        return sorted((r for r in self.requests.values() if r.state in states), key=lambda r: r.key)

    def received(self):
        """Tokens that each decoding request gets in the next decode step."""
        if self.speculation is None:
            return 1
        average = self.speculation.tokens_per_step
        return floor((self.decode_steps + 1) * average) - floor(self.decode_steps * average)

    def lacks(self, more_blocks):
        """Whether so many blocks, and those that the decoding requests need, are more than are free."""
        free = BLOCKS - sum(blocks(request.computed) for request in self.requests.values())
        decode = sum(
            blocks(request.computed + self.received()) - blocks(request.computed)
            for request in self.in_state("decode")
        )
        return more_blocks + decode > free

    def preempt(self, request):
        request.state, request.computed = "waiting", 0

    def preempt_last(self, preempted):
        last = self.in_state("prefill", "decode")[-1]
        self.preempt(last)
        preempted.append(last.request_id)

    def room(self, scheduled):
        return self.budget - self.positions * len(self.in_state("decode")) - scheduled

    def step(self):
        """Return (seconds, prompt tokens, {id: tokens emitted}, finished ids, preempted ids), or None."""
        if not self.requests:
            return None
        preempted, scheduled = [], 0
        while self.in_state("decode") and self.lacks(0):
            self.preempt_last(preempted)
        for request in self.in_state("prefill"):
            if request.state != "prefill" or self.room(scheduled) <= 0:
                continue
            chunk = min(self.room(scheduled), request.target - request.computed)
            more_blocks = blocks(request.computed + chunk) - blocks(request.computed)
            while request.state == "prefill" and self.lacks(more_blocks):
                self.preempt_last(preempted)
            if request.state == "prefill":
                request.computed += chunk
                scheduled += chunk
        for head in [] if preempted else self.in_state("waiting"):
            target = head.prompt + head.emitted
            full = len(self.in_state("prefill", "decode")) >= self.batch_size
            if full or self.room(scheduled) <= 0 or self.lacks(blocks(target)):
                break
            head.state, head.target = "prefill", target
            head.computed = min(self.room(scheduled), target)
            scheduled += head.computed
        return self.emit(scheduled, preempted)

    def emit(self, scheduled, preempted):
        decoding = self.in_state("decode")
        seconds = base_s(self.positions * len(decoding) + scheduled)
        emissions = {}
        received = self.received()
        for request in decoding:
            request.computed += received
            seconds += request.computed * PROFILE.kv_read_s_per_token
            emissions[request.request_id] = min(received, request.output - request.emitted)
        self.decode_steps += bool(decoding)
        for request in self.in_state("prefill"):
            if request.computed == request.target:
                request.state = "decode"
                emissions[request.request_id] = 1
        finished = set()
        for request_id, count in emissions.items():
            request = self.requests[request_id]
            request.emitted += count
            if request.emitted == request.output:
                finished.add(request_id)
                del self.requests[request_id]
        return seconds, scheduled, emissions, finished, preempted


submits = st.tuples(
    st.just("submit"),
    st.integers(1, 20),  # prompt tokens
    st.integers(1, 16),  # output tokens
    st.integers(0, 2),  # priority
)
others = st.one_of(
    submits,
    submits,
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("preempt"), st.integers(0, 20)),
    st.tuples(st.just("batch_size"), st.integers(1, 6)),
    st.tuples(st.just("budget"), st.integers(1, 30)),
)
# More requests at the start than the KV cache holds at their full length, so that blocks run out.
operations = st.builds(
    lambda first, rest: first + rest,
    st.lists(submits, min_size=5, max_size=12),
    st.lists(others, max_size=40),
)
speculations = st.none() | st.builds(Speculation, st.integers(1, 4), st.floats(0, 1))


def compare_step(engine, naive, report):
    """Step both; return whether there was something to do."""
    expected, outcome = naive.step(), engine.step(0.0)
    if expected is None:
        assert outcome is None
        return False
    seconds, scheduled, emissions, finished, preempted = expected
    assert abs(outcome.duration_s - seconds) < 1e-9
    assert outcome.prefill_tokens == scheduled
    assert dict(outcome.emissions) == (emissions if report else {})
    assert len(outcome.emissions) == len(dict(outcome.emissions))
    assert outcome.emitted_tokens == sum(emissions.values())
    assert set(outcome.finished) == finished
    assert outcome.preempted == preempted
    assert engine.waiting_ids() == [r.request_id for r in naive.in_state("waiting")]
    for request in naive.requests.values():
        progress = engine.progress(request.request_id)
        assert (progress.emitted_tokens, progress.computed_tokens) == (request.emitted, request.computed)
        assert progress.phase is PHASES[request.state]
    held = sum(blocks(request.computed) for request in naive.requests.values())
    assert engine.kv_used_tokens == held * BLOCK
    return True


PHASES = {
    "waiting": RequestPhase.WAITING,
    "prefill": RequestPhase.PREFILLING,
    "decode": RequestPhase.DECODING,
}


@given(operations, st.integers(1, 8), st.integers(1, 40), speculations, st.booleans())
def test_engine_does_what_the_naive_model_does(script, batch_size, budget, speculation, report):
    # Without emissions to report, requests are submitted and admitted in shorter ways.
    engine = EngineModel(
        PROFILE.replace(speculation=speculation),
        batch_size=batch_size,
        step_token_budget=budget,
        report_emissions=report,
    )
    naive = NaiveEngine(batch_size, budget, speculation)
    arrivals = 0
    for name, *arguments in script:
        known = sorted(naive.requests)
        if name == "submit":
            prompt, output, priority = arguments
            if report:
                engine.submit(EngineRequest(arrivals, prompt, output, priority))
            else:
                engine.submit_plain(arrivals, prompt, output, priority, 0)
            naive.requests[arrivals] = Naive(arrivals, (priority, arrivals), prompt, output)
            arrivals += 1
        elif name == "step":
            for _ in range(arguments[0]):
                compare_step(engine, naive, report)
        elif name == "batch_size":
            engine.set_batch_size(arguments[0])
            naive.batch_size = arguments[0]
        elif name == "budget":
            engine.set_step_token_budget(arguments[0])
            naive.budget = arguments[0]
        elif known:
            request = naive.requests[known[arguments[0] % len(known)]]
            if name == "abort":
                assert engine.abort(request.request_id).emitted_tokens == request.emitted
                del naive.requests[request.request_id]
            else:
                assert engine.preempt(request.request_id) is (request.state != "waiting")
                naive.preempt(request)
    while compare_step(engine, naive, report):
        pass
    assert engine.kv_free_tokens == engine.kv_total_tokens
