"""What no policy may know changes no decision: lengths of requests under way, and arrivals to come."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.decisions import ChangeRole, FleetDecision, Limits, Retire, Start
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import Phase, Role
from tests.support.sim_worlds import requests, run, world

UNTIL_S = 2.0


class Reacting:
    """Starts, retires and changes roles by what it sees, and keeps what it decided and why."""

    def __init__(self):
        self.decided = []

    def decide(self, snapshot):
        fleet = snapshot.models[0]
        load = sum(each.running_interactive + each.waiting_interactive for each in fleet.instances)
        ready = [each for each in fleet.instances if each.phase is Phase.READY]
        queued = sum(group.requests for group in fleet.backlog)
        rate = round(sum(each.tokens_per_s for each in fleet.instances), 3)
        actions = []
        if load + queued > 6 * len(fleet.instances):
            actions.append(Start("m", Role.MIXED, 1, "load"))
        elif len(ready) > 1 and load < 2:
            actions.append(Retire("m", ready[-1].instance_id, "idle"))
        elif ready and queued > 2:
            role = Role.BATCH if ready[0].role is Role.MIXED else Role.MIXED
            actions.append(ChangeRole("m", ready[0].instance_id, role, "backlog"))
        if snapshot.now_s <= UNTIL_S:
            self.decided.append((snapshot.now_s, load, queued, rate, tuple(actions)))
        return FleetDecision(tuple(actions), ())


class Recording:
    """The built-in dispatcher, keeping what it was asked and answered up to a number of picks."""

    def __init__(self):
        self.answers = []
        self._inner = LeastExpectedWait()

    def pick(self, request, instances):
        answer = self._inner.pick(request, instances)
        self.answers.append((request, getattr(answer, "instance_id", None)))
        return answer


class Widening:
    """A local autoscaler that goes by the throughput that it sees."""

    def decide(self, sample):
        batch_size = 3 + sample.output_tokens % 5
        return Limits(batch_size, sample.step_token_budget, batch_size, "x")


def play(work):
    autoscaler, dispatcher = Reacting(), Recording()
    result = run(
        world({Role.MIXED: 2}, batch_size=4, tick_s=0.19, local_interval_s=0.23, model={"load_time_s": 0.3}),
        work,
        autoscaler,
        dispatcher=dispatcher,
        local=Widening,
    )
    return result, autoscaler.decided, dispatcher.answers


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_decisions_up_to_a_time_do_not_depend_on_what_is_hidden_then(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for arrival in np.cumsum(rng.exponential(0.04, 90)):
        row = (float(arrival), int(rng.integers(1, 100)), int(rng.integers(1, 150)))
        rows.append((*row, float(arrival) + 20.0) if rng.random() < 0.4 else row)
    work = requests(*rows)
    first, decided, answers = play(work)
    open_then = ~(first.outcomes.finish_s <= UNTIL_S)
    longer = work.output_tokens + np.where(open_then, rng.integers(1, 300, len(work)), 0).astype(np.int32)
    come = work.arrival_s <= UNTIL_S
    hidden = dataclasses.replace(
        work,
        arrival_s=work.arrival_s[come],
        prompt_tokens=work.prompt_tokens[come],
        output_tokens=longer[come],
        request_class=work.request_class[come],
        model=work.model[come],
        deadline_s=work.deadline_s[come],
    )
    second, decided_again, answers_again = play(hidden)
    assert decided_again == decided
    assert first.outcomes.finish_s[come & ~open_then].tolist() == [
        finish for finish in second.outcomes.finish_s.tolist() if finish <= UNTIL_S
    ] or np.allclose(
        first.outcomes.finish_s[come & ~open_then], second.outcomes.finish_s[~open_then[come]], rtol=1e-9
    )
    # Whoever has a first token by then was placed by then; later picks may follow from what was hidden.
    placed_by_then = int((first.outcomes.first_token_s <= UNTIL_S).sum())
    placements = [pair for pair in answers if pair[1] is not None][:placed_by_then]
    assert placements == [pair for pair in answers_again if pair[1] is not None][:placed_by_then]
