"""What becomes of streams whose instance is to go: hand-worked times, and nothing lost or made twice."""

import pytest

from chiron.policy.decisions import Retire, Sleep
from chiron.policy.dispatch import Decision
from chiron.policy.words import Phase, Role
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.queue_settings import InvalidSettingError
from tests.support.sim_worlds import Script, requests, run, world

TWO = {Role.MIXED: 2}
A, B = "m-00000", "m-00001"
TICK_S = 0.103
COSTS = MigrationSettings(resume_s=0.02)


class FirstOpen:
    """Sends each request to the first instance that takes it."""

    def pick(self, request, instances):
        return Decision(min(each.instance_id for each in instances), "the first", {})


def drained(action, rows=((0.0, 100, 50),), initial=None, **settings):
    settings = {"batch_size": 16, "tick_s": TICK_S, "migration": COSTS, **settings}
    script = Script({TICK_S: [action]})
    return run(world(initial or TWO, **settings), requests(*rows), script, dispatcher=FirstOpen())


def test_a_stream_goes_on_where_there_is_room_and_its_tokens_are_computed_anew():
    result = drained(Retire("m", A, "x", hand_over=True))

    # The instance's report of its drain is there at the second tick, 0.206 s; the step under way ends at
    # 0.21 s with 21 tokens made. The router has the stream at 0.23 s, and one step computes all 121 tokens.
    assert result.hand_overs.done == 1
    assert result.hand_overs.gap_ms.p50 == pytest.approx(30.0)
    assert result.longest_gap_ms.p50 == pytest.approx(30.0)
    # The 29 tokens that are left come one a step.
    assert result.outcomes.finish_s[0] == pytest.approx(0.24 + 0.28)
    assert result.itl_ms.p50 == pytest.approx(1e3 * (0.52 - 0.01) / 49)


def test_unasked_it_ends_where_it_is():
    result = drained(Retire("m", A, "x"))
    assert result.hand_overs is None
    assert result.outcomes.finish_s[0] == pytest.approx(0.5)
    assert "hand_overs" not in result.to_json()


def test_where_nobody_else_serves_it_ends_where_it_is():
    result = drained(Retire("m", A, "x", hand_over=True), initial={Role.MIXED: 1})
    assert result.hand_overs is None
    assert result.outcomes.finish_s[0] == pytest.approx(0.5)


def test_a_promise_that_a_gap_would_break_keeps_it():
    # Steps take 10 ms: after 21 tokens 0.2 s have gone, and 80 % of this SLO are 0.21 s.
    result = drained(Retire("m", A, "x", hand_over=True), model={"itl_slo_s": 0.0125})
    assert result.hand_overs is None
    assert result.slo_attainment.interactive == 1.0


def test_an_instance_that_is_to_sleep_sleeps_sooner():
    slept = {}
    for hand_over in (False, True):
        result = drained(
            Sleep("m", A, "x", hand_over=hand_over),
            rows=((0.0, 100, 400), (4.5, 10, 20)),
            model={"sleep_level": 1, "sleep_time_s": 0.0},
        )
        slept[hand_over] = min(
            point.at_s for point in result.timeline if point.held.get(Phase.SLEEPING, 0.0) > 0
        )
    assert slept[True] < 0.6 < 3.9 < slept[False]


def test_its_gpu_is_free_sooner():
    hours = {}
    for hand_over in (False, True):
        result = drained(Retire("m", A, "x", hand_over=hand_over), rows=((0.0, 100, 400),))
        hours[hand_over] = result.gpu_hours
    assert 3600 * (hours[False] - hours[True]) == pytest.approx(4.0 - 0.3, abs=0.2)


def test_a_batch_stream_goes_on_too():
    result = drained(Retire("m", A, "x", hand_over=True), rows=((0.0, 100, 50, 60.0),))
    assert result.hand_overs.done == 1
    assert result.outcomes.finish_s[0] == pytest.approx(0.52)


def test_a_cost_below_nothing_is_named():
    with pytest.raises(InvalidSettingError, match="resume_s"):
        MigrationSettings(resume_s=-0.1)
