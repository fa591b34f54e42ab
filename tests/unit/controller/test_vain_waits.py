"""When those who wait for a model of which nothing runs hear that nothing will."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Alternative, ModelAssessment
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from services.global_controller import on_demand
from services.global_controller.failed_starts import FailedStarts
from services.global_controller.on_demand import VainWaits
from tests.support.cluster_states import FAILED, instance

PATIENCE_S = on_demand._PATIENCE_S
FOUND = ModelAssessment("m", {}, "demand exceeds the slots", (Alternative("start 1", "no GPU is left", {}),))
LOADING = FleetInstance("i", "n", Role.MIXED, Phase.LOADING, 1, 1)


def fleet(
    name: str = "m", queued: int = 1, *instances: FleetInstance, backlog: tuple[BatchBacklog, ...] = ()
) -> ModelFleet:
    traffic = Traffic(1.0, queued_interactive=queued)
    return ModelFleet(name, 1, 0, 0, 10.0, 0.2, 2.0, instances, traffic, backlog=backlog, load_time_s=20.0)


def look(waits: VainWaits, now_s: float, *models: ModelFleet, **more: object) -> str:
    """Why waiting for `m` is in vain after one more tick."""
    seen = FleetSnapshot(now_s, models or (fleet(),), {})
    waits.look(seen, "m", more.get("found", FOUND), more.get("void", ()))  # type: ignore[arg-type]
    return waits.why("m", now_s)


def test_it_takes_a_while_and_then_says_why() -> None:
    waits = VainWaits()
    assert look(waits, 100.0) == ""
    assert look(waits, 100.0 + PATIENCE_S - 0.1) == ""
    assert look(waits, 100.0 + PATIENCE_S) == "no instance can be started: no GPU is left"
    told = look(waits, 200.0, void=["the budget is spent"])
    assert told == "no instance can be started: the budget is spent; no GPU is left"
    bare = ModelAssessment("m", {}, "it holds")
    assert look(waits, 201.0, found=bare) == "no instance can be started: it holds"


@pytest.mark.parametrize(
    "calm",
    [fleet("m", 0), fleet("m", 1, LOADING)],
    ids=["nobody waits", "one loads"],
)
def test_it_begins_anew_once_waiting_makes_sense(calm: ModelFleet) -> None:
    waits = VainWaits()
    look(waits, 100.0)
    assert look(waits, 200.0)
    assert look(waits, 201.0, calm) == ""
    assert look(waits, 202.0) == ""


def test_batch_work_waits_too() -> None:
    waits = VainWaits()
    backlog = (BatchBacklog(60.0, 3, 30),)
    look(waits, 100.0, fleet("m", 0, backlog=backlog))
    assert look(waits, 200.0, fleet("m", 0, backlog=backlog))


def test_while_something_leaves_its_gpus_may_be_waited_for() -> None:
    waits = VainWaits()
    leaving = fleet("other", 0, FleetInstance("o", "n", Role.MIXED, Phase.DRAINING, 1, 1))
    look(waits, 100.0)
    assert look(waits, 200.0, fleet(), leaving) == ""
    assert look(waits, 200.0 + PATIENCE_S - 1) == ""
    assert look(waits, 200.0 + PATIENCE_S)


def test_models_that_are_gone_are_forgotten() -> None:
    waits = VainWaits()
    look(waits, 100.0)
    waits.forget_others(["other"])
    assert waits.why("m", 500.0) == ""


def test_after_a_failed_start_it_says_what_failed_until_the_next_one() -> None:
    starts = FailedStarts(first_pause_s=5.0)
    failed = instance("i", "a", state=FAILED, reason="no weights")
    starts.look("m", [failed], 100.0)
    assert starts.last("m", 104.9) == "i on a failed: no weights"
    # Unlike what operators are shown, it does not count down: routers get no news from it.
    assert starts.last("m", 101.0) == starts.last("m", 104.0)
    assert starts.last("m", 105.0) == ""
    assert starts.last("other", 101.0) == ""
