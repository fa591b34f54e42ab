"""Advice is recorded when what would be done changes, and not for ever."""

from __future__ import annotations

from chiron.policy.decisions import ChangeRole, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.words import Role
from chiron.v1 import cluster_pb2
from services.global_controller.advice import BETWEEN_ADVICE_S, SAME_AGAIN_S, Advices
from services.global_controller.restraint import Restraint

ADVISORY = Restraint("advisory mode", cluster_pb2.AUTOSCALE_STATE_ADVISORY)
RETIRE = Retire("chat", "a", "idle")
START = Start("chat", Role.MIXED, 1, "busy")


def tick(
    advices: Advices, now_s: float, *actions: Retire | Start | ChangeRole, restraint: Restraint = ADVISORY
) -> list[str]:
    """What is recorded of a tick that advises these actions."""
    advice = FleetDecision(actions, (ModelAssessment("chat", {"demand": now_s}, f"at {now_s:g} s"),))
    acts = advices.acts(advice, {"chat": restraint}, now_s)
    advices.note(advice, {"chat": restraint}, now_s)
    return [act.reason for act in acts]


def test_the_same_advice_is_recorded_once_however_often_it_ceases_within_ten_minutes() -> None:
    advices = Advices()
    assert tick(advices, 0.0, RETIRE) == ["retire 1 (advisory mode): at 0 s"]
    for now_s in range(1, int(SAME_AGAIN_S)):
        assert not tick(advices, now_s, *[RETIRE] * (now_s % 7 == 0))
    assert not tick(advices, SAME_AGAIN_S)
    assert len(tick(advices, SAME_AGAIN_S + 1, RETIRE)) == 1
    assert not tick(advices, SAME_AGAIN_S + 2, RETIRE)


def test_advice_that_never_ceased_is_not_repeated_at_all() -> None:
    advices = Advices()
    assert len(tick(advices, 0.0, RETIRE)) == 1
    assert not tick(advices, 2 * SAME_AGAIN_S, RETIRE)


def test_a_change_of_what_would_be_done_is_recorded() -> None:
    advices = Advices()
    assert len(tick(advices, 0.0, RETIRE)) == 1
    assert not tick(advices, BETWEEN_ADVICE_S - 1, START)
    assert tick(advices, BETWEEN_ADVICE_S, START) == ["start mixed 1 (advisory mode): at 10 s"]
    assert len(tick(advices, 2 * BETWEEN_ADVICE_S, RETIRE, RETIRE)) == 1


def test_what_was_carried_out_in_between_makes_it_new() -> None:
    advices = Advices()
    assert len(tick(advices, 0.0, RETIRE)) == 1
    assert not tick(advices, 1.0, RETIRE, restraint=Restraint())
    assert len(tick(advices, 2.0, RETIRE)) == 1


def test_no_advice_is_given_against_a_pin_in_advisory_mode() -> None:
    pinned = Restraint("advisory mode", cluster_pb2.AUTOSCALE_STATE_PINNED, count="an operator pinned 1")
    advices = Advices()
    assert not tick(advices, 0.0, RETIRE, START, restraint=pinned)
    role = ChangeRole("chat", "a", Role.BATCH, "batch work")
    assert tick(advices, 1.0, RETIRE, role, restraint=pinned) == ["make batch 1 (advisory mode): at 1 s"]
