"""How a roll goes on step by step, what stops it, and what takes the place of instances lost meanwhile."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2
from services.global_controller.view import Health, Liveness, Plan
from tests.support.cluster_states import (
    FAILED,
    LOADING,
    PENDING,
    STOPPED,
    cluster,
    decide,
    instance,
    model,
    node,
    nothing,
    rolled,
    started,
    stopped,
)

ONE, TWO = model(desired=2, version=1), model(desired=2, version=2)
OLD = (instance("i", "a", 0), instance("j", "a", 1))
NEW = instance("k", "a", 2, version=2, roll=1)


def versions(plan: Plan) -> dict[str, int]:
    """Spec version of each instance that the plan starts."""
    return {key: one.spec_version for key in started(plan) for one in plan.puts if one.instance_id == key}


def state(plan: Plan) -> str:
    """How the plan leaves the roll; empty: as it was."""
    if not plan.models:
        return ""
    [written] = plan.models
    return cluster_pb2.RollState.Name(written.roll.state).removeprefix("ROLL_STATE_")


class TestSteps:
    rolling = rolled(ONE, TWO)

    def test_the_first_one_of_the_new_version_carries_its_spec_version_and_roll(self) -> None:
        plan = decide(cluster(self.rolling, node("a", 3), *OLD))
        [new] = plan.puts
        assert (new.spec, new.spec_version, new.roll) == (TWO.spec, 2, 1)
        assert stopped(plan) == set()

    def test_a_change_that_shares_its_workers_with_an_earlier_version_places_those(self) -> None:
        served_by_one = dataclasses.replace(TWO, rollout_version=1)
        assert versions(decide(cluster(served_by_one, node("a", 3), OLD[0]))) == {"new-1": 1}

    def test_no_old_one_goes_before_the_new_one_has_stayed_ready_for_the_hold_time(self) -> None:
        parts = (self.rolling, node("a", 4), *OLD, NEW)
        plan = decide(cluster(*parts, hold_s=10, health={"k": Health(ready_s=9.5)}))
        assert nothing(plan)
        assert plan.due_s == 0.5
        assert stopped(decide(cluster(*parts, hold_s=10, health={"k": Health(ready_s=10)}))) == {"i"}

    def test_the_models_own_hold_time_counts_for_the_controllers(self) -> None:
        own = rolled(ONE, model(desired=2, version=2, hold_s=0))
        assert stopped(decide(cluster(own, node("a", 4), *OLD, NEW, hold_s=10))) == {"i"}

    def test_one_on_a_node_out_of_touch_has_not_proven_itself(self) -> None:
        new = instance("k", "b", 0, version=2, roll=1)
        silent = node("b", liveness=Liveness.SILENT)
        assert nothing(decide(cluster(self.rolling, node("a", 4), silent, *OLD, new)))

    def test_an_old_one_that_starts_again_after_a_crash_goes_before_one_that_serves(self) -> None:
        crashed = instance("j", "a", 1, state=LOADING, restarts=1)
        plan = decide(cluster(self.rolling, node("a", 4), OLD[0], crashed))
        assert stopped(plan) == set()
        assert stopped(decide(cluster(self.rolling, node("a", 4), OLD[0], crashed, NEW))) == {"j"}

    def test_an_old_one_that_starts_again_on_its_agents_return_goes_no_sooner(self) -> None:
        again = instance("j", "a", 1, state=LOADING, served=True)
        parts = (self.rolling, node("a", 4), OLD[0], again)
        assert stopped(decide(cluster(*parts))) == set()
        assert stopped(decide(cluster(*parts, NEW))) == {"j"}

    def test_one_of_a_version_that_has_served_goes_no_sooner_though_it_has_not_served_itself(self) -> None:
        fresh = instance("j", "a", 1, state=LOADING)
        # Where the one that served is not ready now, and where it is to stop, too.
        returns = instance("i", "a", 0, state=LOADING, served=True)
        leaves = instance("i", "a", 0, desired=STOPPED, served=True)
        for other in (OLD[0], returns, leaves):
            assert stopped(decide(cluster(self.rolling, node("a", 4), other, fresh))) == set()
        assert stopped(decide(cluster(self.rolling, node("a", 4), OLD[0], fresh, NEW))) == {"j"}
        never = instance("i", "a", 0, state=LOADING)
        assert stopped(decide(cluster(self.rolling, node("a", 4), never, fresh))) == {"i", "j"}

    def test_it_is_over_when_all_of_the_new_version_have_proven_themselves(self) -> None:
        last = instance("l", "a", 3, version=2, roll=1)
        parts = (self.rolling, node("a", 4), NEW, last)
        health = {"k": Health(ready_s=60), "l": Health(ready_s=3)}
        plan = decide(cluster(*parts, hold_s=5, health=health))
        assert (nothing(plan), plan.due_s) == (True, 2.0)
        plan = decide(cluster(*parts))
        assert state(plan) == "DONE"
        assert [act.action for act in plan.acts] == ["roll"]
        assert plan.acts[0].numbers == {
            "from_version": 1,
            "to_version": 2,
            "replaced": 2,
            "remaining": 0,
            "desired": 2,
        }

    def test_it_is_not_over_while_an_instance_is_missing(self) -> None:
        plan = decide(cluster(self.rolling, node("a", 1), NEW))
        assert state(plan) == ""

    def test_while_settling_nothing_is_judged(self) -> None:
        broken = instance("k", "a", 2, version=2, roll=1, state=FAILED)
        assert nothing(decide(cluster(self.rolling, node("a", 4), *OLD, broken, settling=True)))


class TestWithoutSpareGpus:
    def test_one_old_one_goes_first_while_the_others_serve(self) -> None:
        plan = decide(cluster(rolled(ONE, TWO), node("a"), *OLD))
        assert stopped(plan) == {"i"}
        assert "1 go on serving" in plan.acts[0].reason

    def test_no_second_one_goes_while_one_is_missing_already(self) -> None:
        new = rolled(model(desired=3), model(desired=3, version=2))
        crashed = instance("l", "a", 2, state=LOADING, restarts=1)
        plan = decide(cluster(new, node("a", 3), *OLD, crashed))
        assert stopped(plan) == {"l"}, "it serves nobody, so that nobody loses by it"

    def test_a_single_instance_leaves_a_gap(self) -> None:
        alone = rolled(model(), model(version=2))
        plan = decide(cluster(alone, node("a", 1), instance("i", "a")))
        assert stopped(plan) == {"i"}
        assert "0 go on serving" in plan.acts[0].reason

    def test_with_max_unavailable_0_it_waits_for_a_gpu_and_says_so(self) -> None:
        careful = rolled(ONE, model(desired=2, version=2, max_unavailable=0))
        plan = decide(cluster(careful, node("a"), *OLD))
        assert nothing(plan)
        assert plan.reasons["chat"] == (
            "spec version 2 cannot be placed, the earlier one goes on: needs 1 GPU on one node; most free "
            "on a node: 0; no instance stops to make room, because 2 of 2 serve and roll.max_unavailable is 0"
        )
        assert started(decide(cluster(careful, node("a", 3), *OLD))) == {"new-1": ("a", (2,))}

    def test_the_gpu_that_came_free_goes_to_the_new_version(self) -> None:
        leaving = instance("i", "a", 0, desired=STOPPED)
        assert nothing(decide(cluster(rolled(ONE, TWO), node("a"), leaving, OLD[1])))
        assert versions(decide(cluster(rolled(ONE, TWO), node("a"), OLD[1]))) == {"new-1": 2}


class TestStalling:
    rolling = rolled(ONE, TWO)

    def stalls(self, culprit: InstanceRecord, health: dict[str, Health] | None = None) -> Plan:
        """The plan for a roll with this one of the new version; nothing of the old one ever goes."""
        plan = decide(cluster(self.rolling, node("a", 4), *OLD, culprit, hold_s=5, health=health))
        assert state(plan) == "STALLED"
        assert not stopped(plan) & {"i", "j"}
        assert "the earlier one goes on" in plan.reasons["chat"]
        return plan

    def test_one_that_fails_to_start(self) -> None:
        plan = self.stalls(instance("k", "a", 2, version=2, roll=1, state=FAILED, reason="no such weights"))
        assert stopped(plan) == set(), "it stays to be seen"
        assert plan.models[0].roll.reason == "k on a failed: no such weights"
        assert plan.reasons["chat"].count("no such weights") == 1
        [act] = plan.acts
        assert (act.action, act.numbers["remaining"]) == ("roll", 2)

    def test_one_that_crashes_twice_is_stopped(self) -> None:
        again = instance("k", "a", 2, version=2, roll=1, state=LOADING, restarts=2, reason="SIGSEGV")
        assert stopped(self.stalls(again)) == {"k"}

    def test_one_crash_may_be_chance(self) -> None:
        once = instance("k", "a", 2, version=2, roll=1, state=LOADING, restarts=1)
        assert nothing(decide(cluster(self.rolling, node("a", 4), *OLD, once)))

    def test_one_whose_requests_fail_is_stopped(self) -> None:
        plan = self.stalls(NEW, {"k": Health(ready_s=2, served=98, failed=2)})
        assert stopped(plan) == {"k"}
        assert "failed 2 of its 100 requests" in plan.models[0].roll.reason

    @pytest.mark.parametrize("served", [0, 98])
    def test_a_single_failure_holds_the_next_step_up_until_enough_went_well(self, served: int) -> None:
        health = {"k": Health(ready_s=60, served=served, failed=1)}
        assert nothing(decide(cluster(self.rolling, node("a", 4), *OLD, NEW, health=health)))
        health = {"k": Health(ready_s=60, served=99, failed=1)}
        assert stopped(decide(cluster(self.rolling, node("a", 4), *OLD, NEW, health=health))) == {"i"}

    def test_failures_among_enough_good_ones_do_not_matter(self) -> None:
        health = {"k": Health(ready_s=60, served=400, failed=2)}
        assert stopped(decide(cluster(self.rolling, node("a", 4), *OLD, NEW, health=health))) == {"i"}

    def test_what_ran_before_the_roll_is_not_judged_by_its_past(self) -> None:
        back = rolled(TWO, ONE, number=2)
        veteran = instance("v", "a", 0, version=1, restarts=7)
        health = {"v": Health(ready_s=1e6, served=10, failed=90)}
        plan = decide(cluster(back, node("a", 4), veteran, instance("k", "a", 2, version=2), health=health))
        assert state(plan) == ""
        assert versions(plan) == {"new-1": 1}

    def test_a_stalled_roll_removes_nothing_and_starts_nothing(self) -> None:
        still = rolled(ONE, TWO, stalled="k crashed")
        assert nothing(decide(cluster(still, node("a", 4), *OLD)))
        proven = instance("m", "a", 3, version=2, roll=1)
        assert nothing(decide(cluster(still, node("a", 4), OLD[0], proven)))

    def test_an_old_one_that_starts_again_is_left_alone(self) -> None:
        still = rolled(ONE, TWO, stalled="k crashed")
        for one in (
            instance("j", "a", 1, state=LOADING, restarts=1),
            instance("j", "a", 1, state=PENDING),
            instance("j", "a", 1, state=FAILED),
        ):
            assert nothing(decide(cluster(still, node("a", 4), OLD[0], one)))

    def test_a_lower_wanted_count_takes_the_new_ones_first(self) -> None:
        still = dataclasses.replace(rolled(ONE, TWO, stalled="k crashed"), desired_instances=1)
        parts = (still, node("a", 4), *OLD, NEW)
        assert stopped(decide(cluster(*parts, load={"i": 1}))) == {"k", "j"}

    def test_at_0_wanted_everything_goes(self) -> None:
        still = dataclasses.replace(rolled(ONE, TWO, stalled="k crashed"), desired_instances=0)
        broken = dataclasses.replace(NEW, observed=dataclasses.replace(NEW.observed, state=FAILED))
        assert stopped(decide(cluster(still, node("a", 4), *OLD, broken))) == {"i", "j", "k"}


class TestMissingMeanwhile:
    """What takes the place of an instance that is lost during a roll."""

    lost = node("b", liveness=Liveness.DEAD)

    def place(self, rolling: ModelRecord, *parts: InstanceRecord) -> dict[str, int]:
        away = instance("x", "b", 0, version=parts[0].spec_version)
        plan = decide(cluster(rolling, node("a", 4), self.lost, *parts, away))
        assert not stopped(plan) - {"x"}
        return versions(plan)

    three, four = model(desired=3), model(desired=3, version=2)

    def test_while_the_new_version_is_on_trial_it_is_the_old_version(self) -> None:
        loading = instance("k", "a", 2, version=2, roll=1, state=LOADING)
        two_lost = dataclasses.replace(rolled(self.three, self.four), desired_instances=4)
        assert self.place(two_lost, *OLD, loading) == {"new-1": 1}

    def test_once_it_has_proven_itself_it_is_the_new_version(self) -> None:
        assert self.place(rolled(self.three, self.four), OLD[0], NEW) == {"new-1": 2}

    def test_where_no_step_is_under_way_it_is_the_next_step(self) -> None:
        assert self.place(rolled(self.three, self.four), *OLD) == {"new-1": 2}

    def test_in_a_stalled_roll_it_is_the_old_version(self) -> None:
        assert self.place(rolled(self.three, self.four, stalled="why"), OLD[0], NEW) == {"new-1": 1}

    def test_what_was_placed_so_stays_until_its_turn(self) -> None:
        mended = instance("m", "a", 1, version=1, roll=1, state=PENDING)
        loading = instance("k", "a", 2, version=2, roll=1, state=LOADING)
        assert nothing(decide(cluster(rolled(ONE, TWO), node("a", 4), mended, loading)))

    def test_when_lost_ones_return_no_more_than_one_too_many_goes_on(self) -> None:
        five = rolled(model(desired=4), model(desired=4, version=2))
        back = [instance(name, "b", index) for index, name in enumerate("xyz")]
        proven = instance("p", "a", 0, version=2, roll=1)
        loading = [
            instance(name, "a", n, version=2, roll=1, state=LOADING) for n, name in ((1, "k"), (2, "l"))
        ]
        plan = decide(cluster(five, node("a", 4), node("b", 3), *back, proven, *loading))
        assert stopped(plan) == {"k"}
        assert started(plan) == {}

    def test_a_failed_new_one_leaves_its_place_to_the_old_version(self) -> None:
        broken = instance("k", "a", 0, version=2, roll=1, state=FAILED, reason="no such weights")
        plan = decide(cluster(rolled(ONE, TWO), node("a"), OLD[1], broken))
        assert state(plan) == "STALLED"
        assert versions(plan) == {"new-1": 1}
        assert started(plan) == {"new-1": ("a", (0,))}
        [new] = [one for one in plan.puts if one.instance_id == "new-1"]
        assert new.spec == ONE.spec

    def test_that_place_has_the_old_versions_gpus(self) -> None:
        wide = rolled(model(gpus=2), model(gpus=1, version=2), stalled="k failed")
        plan = decide(cluster(wide, node("a", 4)))
        assert started(plan) == {"new-1": ("a", (0, 1))}
        assert "chat (spec version 1)" in plan.acts[0].reason

    def test_an_instance_on_a_drained_node_stays_until_an_old_one_serves_in_its_place(self) -> None:
        moved = (rolled(ONE, TWO, stalled="why"), node("a", 2), node("b", draining=True), OLD[0])
        away = instance("x", "b", 0)
        assert versions(decide(cluster(*moved, away))) == {"new-1": 1}
        coming = instance("m", "a", 1, roll=1, state=LOADING)
        assert nothing(decide(cluster(*moved, away, coming)))
        assert stopped(decide(cluster(*moved, away, instance("m", "a", 1, roll=1)))) == {"x"}


class TestTurningBack:
    broken = instance("k", "a", 2, version=2, roll=1, state=FAILED, reason="no such weights")

    def test_a_failure_leads_back_where_that_was_asked_for(self) -> None:
        plan = decide(cluster(rolled(ONE, TWO, back=True), node("a", 4), *OLD, self.broken))
        [written] = plan.models
        assert (written.spec_version, written.rollout_version, written.spec) == (1, 1, ONE.spec)
        assert (written.roll.number, written.roll.from_version, written.roll.to_version) == (2, 2, 1)
        assert written.roll.reason == ("spec version 2 was rolled back: k on a failed: no such weights")
        assert [one.spec_version for one in written.history] == [2]
        assert not written.roll.rollback_on_failure
        assert stopped(plan) == {"k"}
        assert started(plan) == {}

    def test_those_already_replaced_come_back_one_at_a_time(self) -> None:
        replaced = instance("m", "a", 1, version=2, roll=1)
        plan = decide(cluster(rolled(ONE, TWO, back=True), node("a", 4), OLD[0], replaced, self.broken))
        assert stopped(plan) == {"k"}
        back = plan.models[0]
        plan = decide(cluster(back, node("a", 4), OLD[0], replaced))
        assert versions(plan) == {"new-1": 1}
        returned = instance("n", "a", 2, version=1, roll=2)
        assert stopped(decide(cluster(back, node("a", 4), OLD[0], replaced, returned))) == {"m"}

    def test_it_does_not_turn_back_a_second_time(self) -> None:
        replaced = instance("m", "a", 1, version=2, roll=1)
        parts = (node("a", 4), OLD[0], replaced)
        back = decide(cluster(rolled(ONE, TWO, back=True), *parts, self.broken)).models[0]
        broken = instance("n", "a", 3, version=1, roll=2, state=FAILED)
        plan = decide(cluster(back, *parts, broken))
        assert state(plan) == "STALLED"
        assert plan.models[0].spec_version == 1

    def test_the_way_back_never_turns_into_a_way_forward(self) -> None:
        back = rolled(TWO, ONE, back=True, number=2)
        broken = instance("n", "a", 3, version=1, roll=2, state=FAILED)
        plan = decide(cluster(back, node("a", 4), OLD[0], broken, instance("m", "a", 1, version=2)))
        assert (state(plan), plan.models[0].spec_version) == ("STALLED", 1)

    def test_without_a_version_to_return_to_it_stalls(self) -> None:
        blind = dataclasses.replace(rolled(ONE, TWO, back=True), history=())
        plan = decide(cluster(blind, node("a", 4), *OLD, self.broken))
        assert state(plan) == "STALLED"


class TestSuperseding:
    three = rolled(dataclasses.replace(ONE, history=(TWO.version,)), model(desired=2, version=3), number=2)

    def test_instances_of_the_middle_version_go_first(self) -> None:
        middle = instance("k", "a", 2, version=2, roll=1)
        plan = decide(cluster(self.three, node("a", 4), *OLD, middle))
        assert stopped(plan) == {"k"}, "it is one more than wanted"
        newest = instance("n", "a", 3, version=3, roll=2)
        plan = decide(cluster(self.three, node("a", 4), OLD[0], middle, newest, load={"k": 9}))
        assert stopped(plan) == {"k"}

    def test_one_of_the_middle_version_that_loads_goes_at_once(self) -> None:
        middle = instance("k", "a", 2, version=2, roll=1, state=LOADING)
        plan = decide(cluster(self.three, node("a", 4), *OLD, middle))
        assert stopped(plan) == {"k"}
        assert started(plan) == {}, "the next step waits until it has gone"


def test_a_deleted_model_ends_its_roll() -> None:
    gone = dataclasses.replace(rolled(ONE, TWO), deleted=True, desired_instances=0)
    plan = decide(cluster(gone, node("a", 4), *OLD, NEW))
    assert stopped(plan) == {"i", "j", "k"}
    assert plan.models == ()
