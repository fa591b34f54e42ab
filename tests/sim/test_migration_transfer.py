"""What becomes of a request that moves while it runs: hand-worked times, and nothing lost or made twice."""

import pytest

from chiron.policy.decisions import Retire
from chiron.policy.dispatch import Decision
from chiron.policy.words import Role
from chiron.sim.baselines.migration import FreenessPairing, MigrationThresholds, Pair
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.queue_settings import InvalidSettingError
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import FLAT, Script, requests, run, world

TWO = {Role.MIXED: 2}
A, B = "m-00000", "m-00001"
# 1,120 tokens of KV cache go over a second; 16 tokens are a block.
SLOW = MigrationSettings(network_bytes_per_s=1120.0, handover_s=0.02, last_stage_blocks=1)


class Always:
    """Moves what it can from one instance to another."""

    def __init__(self, source=A, destination=B, interval_s=0.105):
        self.interval_s = interval_s
        self.views = []
        self._pair = Pair(source, destination)

    def pairs(self, instances):
        self.views.append(instances)
        return [self._pair]

    def choose(self, movable):
        return min(movable)[0] if movable else None


class Placing:
    """Sends short prompts to the first instance, unless told otherwise, and long ones where it is told to."""

    def __init__(self, *, short=A, long=A):
        self._short, self._long = short, long

    def pick(self, request, instances):
        return Decision(self._long if request.prompt_tokens > 50 else self._short, "as told", {})


def test_it_goes_on_while_its_cache_is_copied_and_stops_for_the_rest_alone():
    result = run(world(TWO, migration=SLOW), requests((0.0, 100, 50)), migration=Always())

    # Seen at 0.105 s, known at 0.125 s. The step under way ends at 0.13 s with 13 tokens made, 112 in the
    # cache: 0.1 s to copy. At 0.225 s another ten will be there at 0.23 s, less than a block: it stops then.
    arrives_s = 0.23 + 10 / 1120 + 0.02
    assert result.migrations.done == 1
    assert result.migrations.stall_ms.p50 == pytest.approx(1e3 * (arrives_s - 0.23))
    # 23 of 50 tokens were made; the other 27 come one a step.
    assert result.outcomes.finish_s[0] == pytest.approx(arrives_s + 0.27)
    # The stall and the step after it are its longest gap, and count in its mean ITL.
    assert result.longest_gap_ms.p50 == pytest.approx(1e3 * (arrives_s - 0.23 + 0.01))
    assert result.itl_ms.p50 == pytest.approx(1e3 * (arrives_s + 0.27 - 0.01) / 49)


def test_what_is_short_stops_at_once():
    costs = MigrationSettings(network_bytes_per_s=1120.0, handover_s=0.0, last_stage_blocks=7)
    result = run(world(TWO, migration=costs), requests((0.0, 100, 50)), migration=Always())

    # 112 tokens are seven blocks: they are copied after 0.13 s, and nothing is made meanwhile.
    assert result.outcomes.finish_s[0] == pytest.approx(0.13 + 0.1 + 0.37)


def test_one_that_needs_too_many_stages_stays():
    # 132 tokens take 0.33 s, the 33 that came meanwhile 0.08 s, and the nine after them are the rest.
    costs = {"network_bytes_per_s": 400.0, "handover_s": 0.0, "last_stage_blocks": 1}
    moved = {}
    for stages in (2, 3):
        settings = world(TWO, migration=MigrationSettings(max_stages=stages, **costs))
        result = run(settings, requests((0.0, 100, 90)), migration=Always(interval_s=0.305))
        moved[stages] = (result.migrations.done, result.migrations.given_up)
        if not result.migrations.done:
            assert result.outcomes.finish_s[0] == pytest.approx(0.9)
    assert moved == {2: (0, 1), 3: (1, 0)}


def test_one_that_ends_meanwhile_is_given_up_and_loses_nothing():
    rows = requests((0.0, 100, 20), (0.0, 100, 60))
    result = run(world(TWO, migration=SLOW), rows, migration=Always())

    assert (result.migrations.done, result.migrations.given_up) == (0, 1)
    assert list(result.outcomes.finish_s) == pytest.approx([0.2, 0.6])


def test_nothing_moves_to_where_no_slot_or_no_cache_is_free():
    # One slot each, both taken; and with two, a cache of ten blocks that one request on each fills.
    small = FLAT.replace(kv_capacity_tokens=160)
    for settings in (
        world(TWO, batch_size=1, migration=SLOW),
        world(TWO, profile=small, batch_size=2, migration=SLOW),
    ):
        planner = Always()
        result = run(settings, requests((0.0, 100, 50), (0.0, 100, 50)), migration=planner)
        assert planner.views
        assert (result.migrations.done, result.migrations.given_up) == (0, 0)


def test_a_draining_instance_is_emptied_and_its_gpu_is_free_early():
    retire = {1.0: [Retire("m", A, "x")]}
    rows = requests((0.0, 100, 900), (0.0, 100, 900), (0.0, 100, 900))
    costs = MigrationSettings(network_bytes_per_s=1e9)
    hours = {}
    for planner in (None, FreenessPairing(MigrationThresholds(migration_interval_s=0.0531))):
        result = run(world(TWO, migration=costs), rows, Script(retire), migration=planner)
        assert result.unfinished == 0
        hours[planner is not None] = result.gpu_hours
    assert result.migrations.done == 2
    # Alone it serves to the end at 9 s; emptied it is gone soon after 1 s.
    assert 3600 * hours[False] == pytest.approx(18.0, abs=0.2)
    assert 3600 * hours[True] == pytest.approx(10.2, abs=0.4)


def test_a_request_that_moves_goes_before_those_that_wait():
    # It leaves at 0.13 s, when a slot of the second instance is free, and arrives at 0.33 s: the slot was
    # taken at 0.205 s, and another request waits.
    costs = MigrationSettings(network_bytes_per_s=1e9, handover_s=0.2)
    settings = world(TWO, batch_size=2, migration=costs, engine_queue=8)
    rows = requests((0.0, 10, 100), (0.0, 60, 50), (0.205, 60, 50), (0.215, 60, 50))
    result = run(settings, rows, dispatcher=Placing(long=B), migration=Always())

    assert result.migrations.done == 1
    # A slot is free at 0.5 s, the next one at 0.71 s.
    assert result.outcomes.finish_s[0] == pytest.approx(0.5 + 0.87)
    assert result.outcomes.first_token_s[3] == pytest.approx(0.72)


def test_failures_on_either_side_lose_no_request_and_no_token():
    # While it is copied (0.13 s to 0.23 s), and while the rest is on its way (to 0.26 s).
    for at_s in (0.15, 0.24):
        for target in (0, 1):
            faults = FaultSettings(planned=(Fault(at_s, "instance", target),))
            result = run(
                world(TWO, migration=SLOW, faults=faults), requests((0.0, 100, 50)), migration=Always()
            )
            assert result.unfinished == 0
            assert result.migrations.done == (at_s > 0.2)


def test_copies_of_one_node_go_one_after_another():
    class Both(Always):
        def pairs(self, instances):
            # The first and the third are on one node, the others on the other.
            one, two, three, four = (each.instance_id for each in instances)
            return [Pair(one, four), Pair(three, two)]

    rows = requests((0.0, 100, 50), (0.0, 100, 50), (0.0, 100, 50))
    costs = MigrationSettings(network_bytes_per_s=1120.0, handover_s=0.005, last_stage_blocks=7)
    result = run(world({Role.MIXED: 4}, migration=costs), rows, migration=Both())

    assert result.migrations.done == 2
    # The second copy begins at 0.23 s; at 0.335 s a step is under way where it arrives.
    assert sorted(result.outcomes.finish_s) == pytest.approx([0.5, 0.235 + 0.37, 0.34 + 0.37])


def test_the_longest_gap_is_of_steps_where_it_was_then():
    # A prompt of 3,000 tokens makes a step of 40 ms, on the instance that has less to do.
    profile = FLAT.replace(
        step_time_ms=((1, 10.0), (1001, 10.0), (3001, 40.0), (5001, 40.0)), default_step_token_budget=8000
    )
    costs = MigrationSettings(network_bytes_per_s=1e9, handover_s=0.0)
    settings = world(TWO, profile=profile, migration=costs)
    rows = requests((0.0, 10, 100), (0.055, 3000, 1))
    gaps_ms = []
    for place in (A, B):
        result = run(settings, rows, dispatcher=Placing(long=place), migration=Always(interval_s=0.205))
        assert result.migrations.done == 1
        gaps_ms.append(result.longest_gap_ms.p50)
    # The prompt stretched a step of the first instance, or one of the second before the request was there.
    assert gaps_ms == pytest.approx([40.0, 10.0], rel=0.02)


def test_settings_out_of_range_are_refused_by_name():
    for key, value in (
        ("network_bytes_per_s", 0.0),
        ("handover_s", -1.0),
        ("last_stage_blocks", -1),
        ("max_stages", 0),
    ):
        with pytest.raises(InvalidSettingError, match=f"^{key}: "):
            MigrationSettings(**{key: value})


def test_a_destination_that_retires_meanwhile_gets_nothing():
    # It is told at 0.15 s, while the cache is copied; the request serves to its end where it is.
    retire = {0.15: [Retire("m", B, "x")]}
    settings = world(TWO, migration=SLOW, tick_s=0.15)
    result = run(settings, requests((0.0, 100, 50)), Script(retire), migration=Always())

    assert (result.migrations.done, result.migrations.given_up) == (0, 1)
    assert result.outcomes.finish_s[0] == pytest.approx(0.5)


def test_its_service_is_counted_from_the_first_instance():
    script = Script()
    rows = requests((0.0, 100, 50), (1.0, 100, 200))
    settings = world(TWO, migration=SLOW, tick_s=0.75)
    result = run(settings, rows, script, migration=Always(interval_s=0.105))

    served_s = sum(each.models[0].traffic.finished_service_s for each in script.snapshots[:2])
    assert result.migrations.done >= 1
    assert served_s == pytest.approx(result.outcomes.finish_s[0])


def test_room_that_is_gone_when_the_rest_is_due_keeps_it_where_it_is():
    # The only slot of the second instance is taken while the cache is copied, from 0.13 s to 0.225 s.
    rows = requests((0.0, 10, 50), (0.16, 60, 50))
    costs = MigrationSettings(network_bytes_per_s=220.0, last_stage_blocks=1)
    settings = world(TWO, batch_size=1, migration=costs)
    result = run(settings, rows, dispatcher=Placing(long=B), migration=Always())

    assert (result.migrations.done, result.migrations.given_up) == (0, 1)
    assert result.outcomes.finish_s[0] == pytest.approx(0.5)


def test_one_request_follows_another_without_a_further_decision():
    # Decided at 0.125 s and at 0.9 s at the earliest; each of the three takes 20 ms.
    costs = MigrationSettings(network_bytes_per_s=1e9, handover_s=0.0123)
    rows = requests((0.0, 10, 60), (0.0, 10, 60), (0.0, 10, 60))
    result = run(world(TWO, migration=costs), rows, dispatcher=Placing(), migration=Always(interval_s=0.45))

    assert result.migrations.done == 3


def test_a_request_stays_off_instances_of_another_role():
    for roles, moves in (({Role.MIXED: 1, Role.INTERACTIVE: 1}, False), ({Role.INTERACTIVE: 2}, True)):
        result = run(
            world(roles, migration=SLOW), requests((0.0, 100, 50)), dispatcher=Placing(), migration=Always()
        )
        assert bool(result.migrations.done) == moves
