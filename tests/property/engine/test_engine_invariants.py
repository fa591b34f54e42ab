"""What holds whatever is submitted, aborted, preempted or changed, prefix cache and resumption included."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chiron.engine import EngineModel, EngineRequest, Speculation, get_profile

BLOCK = 4
PROFILE = get_profile("toy").replace(
    block_size=BLOCK,
    kv_capacity_tokens=BLOCK * 16,
    max_context_tokens=50,
    speculation=Speculation(2, 0.6),
)


class EngineMachine(RuleBasedStateMachine):
    """Drives one engine and keeps its own account of every request."""

    def __init__(self):
        super().__init__()
        self.engine = EngineModel(PROFILE, batch_size=4, step_token_budget=16)
        self.next_id = 0
        self.owed: dict[int, int] = {}
        self.finished: set[int] = set()
        self.most_running = 4

    @rule(
        prompt=st.integers(1, 24),
        output=st.integers(1, 16),
        resumed=st.integers(0, 15),
        priority=st.integers(0, 2),
        family=st.sampled_from(["", "x", "y"]),
    )
    def submit(self, prompt, output, resumed, priority, family):
        resumed = min(resumed, output - 1)
        full_blocks = (prompt + resumed) // BLOCK
        hashes = tuple((family, i) for i in range(full_blocks)) if family else ()
        self.engine.submit(EngineRequest(self.next_id, prompt, output, priority, hashes, resumed))
        self.owed[self.next_id] = output - resumed
        self.next_id += 1

    def account(self, outcome):
        for request_id, tokens in outcome.emissions:
            assert tokens >= 1
            self.owed[request_id] -= tokens
            assert self.owed[request_id] >= 0
        for request_id in outcome.finished:
            assert self.owed.pop(request_id) == 0
            assert request_id not in self.finished
            self.finished.add(request_id)
        if outcome.admitted:
            assert self.engine.running + len(outcome.finished) <= self.engine.batch_size

    @precondition(lambda self: self.owed)
    @rule()
    def step(self):
        decoding, running = self.engine.decoding, self.engine.running
        outcome = self.engine.step(0.0)
        # The budget bounds a step, unless the decodes that run anyway need more.
        assert outcome.prefill_tokens + outcome.decode_tokens <= max(
            self.engine.step_token_budget, 3 * decoding
        )
        assert outcome.prefill_tokens + outcome.decode_tokens >= 1
        self.most_running = max(self.engine.batch_size, running)
        self.account(outcome)
        self.most_running = max(self.engine.batch_size, self.engine.running)

    @precondition(lambda self: self.owed)
    @rule()
    def advance(self):
        self.account(self.engine.advance(0.0))
        self.most_running = max(self.engine.batch_size, self.engine.running)

    @precondition(lambda self: self.owed)
    @rule(choice=st.integers(0, 100))
    def abort(self, choice):
        request_id = sorted(self.owed)[choice % len(self.owed)]
        assert self.engine.abort(request_id).remaining_tokens == self.owed.pop(request_id)

    @precondition(lambda self: self.owed)
    @rule(choice=st.integers(0, 100))
    def preempt(self, choice):
        self.engine.preempt(sorted(self.owed)[choice % len(self.owed)])

    @rule(batch_size=st.integers(1, 6))
    def set_batch_size(self, batch_size):
        self.engine.set_batch_size(batch_size)
        self.most_running = max(batch_size, self.engine.running)

    @rule(budget=st.integers(1, 40))
    def set_budget(self, budget):
        self.engine.set_step_token_budget(budget)

    @invariant()
    def requests_are_conserved(self):
        engine = self.engine
        assert engine.running + engine.waiting == len(self.owed)
        assert sorted(engine.running_ids() + engine.waiting_ids()) == sorted(self.owed)
        for request_id, owed in self.owed.items():
            assert engine.progress(request_id).remaining_tokens == owed

    @invariant()
    def slots_are_bounded(self):
        assert self.engine.running <= self.most_running

    @invariant()
    def blocks_are_conserved(self):
        engine = self.engine
        assert 0 <= engine.kv_free_tokens <= engine.kv_total_tokens
        held = sum(
            -(-engine.progress(request_id).computed_tokens // BLOCK) * BLOCK
            for request_id in engine.running_ids()
        )
        # Shared blocks are counted once in the engine and once per user here.
        assert engine.kv_used_tokens <= held
        if not engine.running:
            assert engine.kv_used_tokens == 0

    def teardown(self):
        for _ in range(5000):
            outcome = self.engine.advance(0.0)
            if outcome is None:
                break
            self.account(outcome)
        assert not self.owed
        assert self.engine.kv_free_tokens == self.engine.kv_total_tokens


TestEngineInvariants = EngineMachine.TestCase

populations = st.lists(
    st.tuples(st.integers(1, 24), st.integers(1, 16), st.integers(0, 2)), min_size=1, max_size=20
)


def history(population):
    engine = EngineModel(PROFILE, batch_size=4, step_token_budget=16)
    for request_id, (prompt, output, priority) in enumerate(population):
        engine.submit(EngineRequest(request_id, prompt, output, priority))
    outcomes = []
    while (outcome := engine.advance(0.0)) is not None:
        outcomes.append(outcome)
    return outcomes


@given(populations)
def test_same_calls_give_the_same_outcomes(population):
    assert history(population) == history(population)


@given(populations)
def test_equal_priority_is_first_admitted_in_order_of_arrival(population):
    admitted: list[int] = []
    for outcome in history([(prompt, output, 0) for prompt, output, _ in population]):
        admitted += [a.request_id for a in outcome.admitted if a.request_id not in admitted]
    assert admitted == list(range(len(population)))
