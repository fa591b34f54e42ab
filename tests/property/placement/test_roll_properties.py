"""What holds in every roll, whatever happens meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.global_controller.fleet import held_gpus, is_current
from tests.support.cluster_states import FAILED, READY, RUNNING, STOPPED
from tests.support.roll_world import HOLD_S, RollWorld

REVISIONS = ("good", "good-2", "good-3", "bad-load", "bad-crash", "bad-requests")

number = st.integers(0, 9)
events = st.one_of(
    st.tuples(st.just("obey"), number),
    st.tuples(st.just("obey"), number),
    st.tuples(st.just("time"), st.just(HOLD_S)),
    st.tuples(st.just("crash"), number),
    st.tuples(st.just("apply"), st.sampled_from(REVISIONS)),
    st.tuples(st.just("apply-back"), st.sampled_from(REVISIONS)),
    st.tuples(st.just("rollback"), st.none()),
    st.tuples(st.just("scale"), st.integers(0, 4)),
    st.tuples(st.just("lose"), st.integers(0, 2)),
    st.tuples(st.just("return"), st.integers(0, 2)),
    st.tuples(st.just("drain"), st.integers(0, 2)),
    st.tuples(st.just("undrain"), st.integers(0, 2)),
)
worlds = st.builds(
    RollWorld,
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.integers(1, 3),
    max_unavailable=st.integers(0, 1),
)


def happen(world: RollWorld, kind: str, detail: object) -> None:
    node = f"n{detail}"
    if kind in ("obey", "crash"):
        if world.instances:
            assert isinstance(detail, int)
            one = world.instances[detail % len(world.instances)]
            world.obey(one) if kind == "obey" else world.crash(one)
    elif kind == "time":
        world.pass_time(HOLD_S)
    elif kind in ("apply", "apply-back"):
        world.apply(str(detail), back=kind == "apply-back")
    elif kind == "rollback":
        world.rollback()
    elif kind == "scale":
        assert isinstance(detail, int)
        world.apply(world.model.parsed_spec().revision, detail)
    elif kind == "lose":
        world.dead.add(node)
    elif kind == "return":
        world.dead.discard(node)
    else:
        world.drain(node, undo=kind == "undrain")


def check_pass(world: RollWorld) -> None:
    """Runs one pass and checks what it may and may not do."""
    draining = {key for key, one in world.snapshot.nodes.items() if one.draining}
    before = {one.instance_id: one for one in world.ready() if one.node_id not in draining}
    old_before = [one for one in world.running() if not is_current(world.model, one.spec_version)]
    stalled_before = world.model.roll.stalled
    plan = world.reconcile()
    desired = world.model.desired_instances

    claims = [(one.node_id, gpu) for one in world.instances for gpu in held_gpus(one)]
    assert len(claims) == len(set(claims)), "two instances on a GPU"

    staying = [one for one in world.running() if one.node_id not in draining]
    assert len(staying) <= desired + 1, "more than wanted and one"

    # One that a roll stops because it does not do is no loss.
    culprits = {
        act.instance_id for act in plan.acts if act.action == "stop" and "from_version" in act.numbers
    }
    judged = [one for key, one in before.items() if key not in culprits]
    after = [one for one in world.ready() if one.node_id not in draining]
    unavailable = world.settings["max_unavailable"]
    assert len(after) >= min(len(judged), desired - unavailable), "too few serve"

    if stalled_before and world.model.roll.stalled:
        stopped = {one.instance_id for one in plan.puts if one.desired == STOPPED}
        gone = [one for one in old_before if one.instance_id in stopped and one.node_id not in draining]
        assert len(gone) <= max(0, len(old_before) - desired), "a stalled roll removed an old one"
    assert all(act.reason for act in plan.acts)
    assert {act.action for act in plan.acts if act.model and not act.instance_id} <= {"roll"}


@settings(max_examples=150, deadline=None)
@given(worlds, st.lists(events, max_size=40))
def test_every_pass_keeps_what_serves_and_it_comes_to_rest(
    world: RollWorld, history: list[tuple[str, object]]
) -> None:
    for kind, detail in history:
        happen(world, kind, detail)
        check_pass(world)
    world.settle()
    model, roll = world.model, world.model.roll
    reason = world.plan.reasons.get(model.name, "")
    current = [one for one in world.ready() if is_current(model, one.spec_version)]
    old = [one for one in world.running() if not is_current(model, one.spec_version)]
    if roll.stalled:
        assert roll.reason
        assert reason
    elif len(current) == model.desired_instances and not old:
        assert not roll.rolling
    else:
        assert reason, "something is missing and nothing says so"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 1), st.sampled_from(REVISIONS[1:]), st.booleans())
def test_a_roll_on_a_healthy_cluster_ends_with_all_of_one_version_serving(
    wanted: int, spare: int, unavailable: int, revision: str, back: bool
) -> None:
    """Whatever the new version is worth, and however many GPUs are to spare."""
    world = RollWorld([wanted + spare], wanted, max_unavailable=unavailable)
    world.apply(revision, back=back)
    fewest = wanted
    for _ in range(200):
        check_pass(world)
        fewest = min(fewest, len(world.ready()))
        for one in world.instances:
            world.obey(one)
        world.pass_time(HOLD_S / 2)
    good = revision.startswith("good")
    assert len(world.ready()) == wanted
    if good and (spare or unavailable):
        assert {world.revision(one) for one in world.ready()} == {revision}
        assert not world.model.roll.active
    elif good:
        assert {world.revision(one) for one in world.ready()} == {"good"}
        assert "roll.max_unavailable is 0" in world.plan.reasons["chat"]
    else:
        assert {world.revision(one) for one in world.ready()} == {"good"}
        assert world.model.parsed_spec().revision == ("good" if back and (spare or unavailable) else revision)
    assert fewest >= (wanted if spare else wanted - unavailable)


@pytest.mark.parametrize("revision", ["bad-load", "bad-crash", "bad-requests"])
def test_another_try_of_a_stalled_roll_judges_afresh(revision: str) -> None:
    world = RollWorld([3], 2)
    world.apply(revision)
    world.settle()
    assert world.model.roll.stalled
    first = world.model.roll.number
    world.apply(revision)
    assert world.model.roll.rolling
    assert world.model.roll.number == first
    world.settle()
    assert world.model.roll.stalled
    assert [world.revision(one) for one in world.ready()] == ["good", "good"]
    world.rollback()
    world.settle()
    assert not world.model.roll.active
    assert [(one.desired, one.observed.state) for one in world.instances] == [(RUNNING, READY)] * 2
    assert all(one.observed.state != FAILED for one in world.instances)
