"""What keeps decisions from being carried out, and how that is shown."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from chiron.policy.decisions import ChangeRole, ModelAssessment, Retire, Sleep, Start, Wake
from chiron.policy.words import Role
from chiron.store import AutoscalingOrders
from chiron.v1 import cluster_pb2 as pb
from services.global_controller.autoscale_view import Assessed, autoscale_status
from services.global_controller.autoscaler_config import AutoscalerConfig
from services.global_controller.bounds import Bounds
from services.global_controller.carrying_out import carry_out
from services.global_controller.failed_starts import FIRST_PAUSE_S, LONGEST_PAUSE_S, FailedStarts
from services.global_controller.restraint import (
    Restraint,
    late_telemetry,
    operators_restraint,
    restrained,
    temporary_surplus,
)
from services.global_controller.view import Liveness
from tests.support.cluster_states import FAILED, LOADING, cluster, instance, model, node, numbered, started

START = Start("chat", Role.MIXED, 1, "more")
RETIRE = Retire("chat", "a", "less")
ROLE = ChangeRole("chat", "a", Role.BATCH, "batch work")
WAKE, SLEEP = Wake("chat", "a", Role.MIXED, "more"), Sleep("chat", "a", "less")


@pytest.mark.parametrize(
    ("restraint", "kept", "shown"),
    [
        (Restraint(), [], pb.AUTOSCALE_STATE_ACTIVE),
        (Restraint("paused", pb.AUTOSCALE_STATE_PAUSED), [START, RETIRE, ROLE, WAKE, SLEEP], None),
        (Restraint(count="pinned"), [START, RETIRE, WAKE, SLEEP], pb.AUTOSCALE_STATE_PINNED),
        (Restraint(down="late"), [RETIRE, SLEEP], pb.AUTOSCALE_STATE_HOLDING),
        (Restraint(up="failed"), [START, WAKE], pb.AUTOSCALE_STATE_ACTIVE),
        (Restraint(roles={"a"}), [ROLE], pb.AUTOSCALE_STATE_ACTIVE),
    ],
)
def test_each_restraint_keeps_its_own_kind_of_action(
    restraint: Restraint, kept: list[object], shown: int | None
) -> None:
    everything = [START, RETIRE, ROLE, WAKE, SLEEP]
    assert [action for action in everything if restraint.against(action)] == kept
    assert restraint.shown == (restraint.state if shown is None else shown)


def test_what_operators_say_restrains_and_a_pinned_number_is_both_bounds() -> None:
    paused = dataclasses.replace(model(), autoscaling=AutoscalingOrders(paused=True, pause_reason="tests"))
    assert operators_restraint(paused).nothing == "paused by an operator (tests)"
    pinned = dataclasses.replace(model(), autoscaling=AutoscalingOrders(pinned_instances=0))
    restraint = operators_restraint(pinned)
    assert restraint.count == "an operator pinned 0"
    assert restrained(Bounds(1, 9), pinned, restraint) == Bounds(0, 0)
    assert restrained(Bounds(1, 9), model(), Restraint()) == Bounds(1, 9)


@pytest.mark.parametrize(
    ("instances", "routers", "why"),
    [
        ([0.5, 0.5], [0.5], ""),
        ([], [0.5], ""),
        ([0.5], [], "no router reports what is asked for"),
        ([0.5], [0.5, 4.0], "1 of 2 routers have not reported for 4.0 s"),
        ([0.5, 0.5, 0.5, 0.5, 4.0], [0.5], ""),
        ([0.5, 0.5, 0.5, 4.0], [0.5], "reports of 1 of 4 instances are 4.0 s old"),
    ],
)
def test_nothing_goes_while_too_much_of_what_is_known_is_old(
    instances: list[float], routers: list[float], why: str
) -> None:
    assert late_telemetry(instances, [(age_s, 3.0) for age_s in routers], late_s=3.0) == why
    assert late_telemetry([0.5], [(20.0, 30.0), (4.0, 5.0)], late_s=3.0) == ""


def test_what_runs_beyond_those_wanted_while_others_are_replaced_is_no_surplus() -> None:
    view = cluster(
        model(desired=2),
        node("n0", 4, draining=True),
        node("n1", 4),
        node("n2", 4, liveness=Liveness.DEAD),
        instance("leaving", "n0", 0),
        instance("there", "n1", 0),
        instance("coming", "n1", 1, state=LOADING),
        instance("failed", "n1", 2, state=FAILED),
        instance("lost", "n2", 0),
    )
    assert temporary_surplus(view) == {"chat": 1}


def test_pauses_after_failed_starts_grow_and_end_once_one_is_ready() -> None:
    starts = FailedStarts()
    now = 100.0
    broken = [
        dataclasses.replace(instance(f"i{n}", "n", state=FAILED, reason="no weights")) for n in range(20)
    ]
    pauses = []
    for count in range(1, 9):
        starts.look("chat", broken[:count], now)
        assert "no weights" in starts.pause("chat", now)
        step = 0.0
        while starts.pause("chat", now + step):
            step += FIRST_PAUSE_S
        pauses.append(step)
        now += step
    assert pauses == [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(8)]
    assert "8 starts in a row have failed" in starts.pause("chat", now - 1)
    starts.look("chat", [*broken[:9]], now)
    # Whatever fails within the pause is part of the same failure.
    starts.look("chat", broken[:12], now + 1)
    assert "9 starts in a row" in starts.pause("chat", now + 1)
    starts.look("chat", [*broken[:12], instance("well", "n")], now + 2)
    assert not starts.pause("chat", now + 2)
    starts.look("chat", broken[:13], now + 3)
    assert "the last start has failed, the next one comes in 10 s" in starts.pause("chat", now + 3)
    starts.forget_others(())
    assert not starts.pause("chat", now + 3)


def test_an_instance_that_failed_is_no_capacity_and_a_new_start_takes_its_place() -> None:
    view = cluster(
        model(desired=2),
        node("n0", 4),
        instance("well", "n0", 0),
        instance("broken", "n0", 1, state=FAILED, reason="no weights"),
    )
    given_up = carry_out(view, [], numbered(), bounds={"chat": Bounds(1, 4)})
    assert [(act.action, act.instance_id) for act in given_up.plan.acts] == [("give_up", "broken")]
    assert [one.desired_instances for one in given_up.plan.models] == [1]
    again = carry_out(view, [START], numbered(), bounds={"chat": Bounds(2, 4)})
    assert [act.action for act in again.plan.acts] == ["start", "place"]
    assert not again.plan.models
    assert len(started(again.plan)) == 1


def test_the_status_says_what_is_wanted_and_what_stands_in_the_way() -> None:
    pinned = dataclasses.replace(model(), autoscaling=AutoscalingOrders(pinned_instances=5))
    found = ModelAssessment("chat", {"ibp": 0.5, "bbp": 1, "theta": 0.8, "demand": 7}, "it is enough")
    assessed = Assessed(
        1.0, found, Counter({Role.MIXED: 2, Role.BATCH: 1}), operators_restraint(pinned), ("x",), 2
    )
    shown = autoscale_status(pinned, assessed, assessed.restraint, age_s=0.25, off=False, trouble="")
    assert shown.reason == "wanted 3, an operator pinned 5; x; it is enough"
    assert (shown.state, shown.pinned_instances) == (pb.AUTOSCALE_STATE_PINNED, 5)
    assert (shown.ibp, shown.bbp, shown.theta, shown.numbers["demand"]) == (0.5, 1, 0.8, 7)
    assert (shown.wanted_mixed, shown.wanted_batch, shown.tick_age_ms, shown.min_instances) == (2, 1, 250, 2)
    troubled = autoscale_status(model(), None, Restraint(), age_s=0, off=False, trouble="etcd is away")
    assert (troubled.state, troubled.reason) == (pb.AUTOSCALE_STATE_HOLDING, "etcd is away")
    off = autoscale_status(model(), None, Restraint(), age_s=0, off=True, trouble="")
    assert (off.state, off.reason) == (pb.AUTOSCALE_STATE_OFF, "the controller's autoscaler.policy is off")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"policy": "chirn"}, "policy: unknown policy 'chirn': known are chiron, chiron-paper, off"),
        ({"interval_s": 0.0}, "interval_s: must be a number >= 0.05, not 0"),
        ({"gpu_budget": -1}, "gpu_budget: must be >= 0, not -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match="^" + what):
        AutoscalerConfig(**settings)  # type: ignore[arg-type]
