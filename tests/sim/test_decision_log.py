"""What the log of decisions says of actions that were carried out, in part or not at all."""

from __future__ import annotations

import io
import json

from chiron.policy.decisions import ChangeRole, FleetDecision, ModelAssessment, Retire, Start, Wake
from chiron.policy.words import Role
from chiron.sim.decision_log import DecisionLog

NUMBERS = {"theta": 0.7}


def written(decision: FleetDecision, done: list[list[str]]) -> list[dict[str, object]]:
    out = io.StringIO()
    DecisionLog(out).tick(12.5, decision, done)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_action_names_the_instances_it_was_carried_out_on() -> None:
    decision = FleetDecision(
        (
            Start("m", Role.BATCH, 3, "three groups are late", NUMBERS),
            Retire("m", "m-1", "idle", NUMBERS),
            ChangeRole("m", "m-2", Role.MIXED, "IBP above Θ", NUMBERS),
            Wake("m", "m-3", Role.INTERACTIVE, "sooner than a load", NUMBERS),
        ),
        (),
    )
    start, retire, change, wake = written(decision, [["m-8", "m-9"], [], ["m-2"], ["m-3"]])

    # Three were asked for, two found room.
    assert (start["kind"], start["role"], start["asked"], start["instances"]) == (
        *("start", "batch", 3),
        ["m-8", "m-9"],
    )
    # It was gone already.
    assert (retire["kind"], retire["instances"]) == ("retire", [])
    assert (change["kind"], change["role"], change["reason"]) == ("change-role", "mixed", "IBP above Θ")
    assert (wake["kind"], wake["role"], wake["numbers"]) == ("wake", "interactive", NUMBERS)


def test_a_tick_that_changes_nothing_says_why() -> None:
    (line,) = written(FleetDecision((), (ModelAssessment("m", NUMBERS, "IBP is near Θ"),)), [])

    assert line == {
        "at_s": 12.5,
        "model": "m",
        "kind": "assessment",
        "reason": "IBP is near Θ",
        "numbers": NUMBERS,
    }
