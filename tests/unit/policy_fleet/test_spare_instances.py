"""What a model can spare goes to one of its priority whose requests wait; nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.policy.decisions import Action, Retire, Sleep, Start, Wake
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S, WAKE_S = 20.0, 5.0
WAITING = Traffic(1.0, queued_interactive=5)
PATIENT = ChironSettings(min_hold_s=10_000.0, hand_over=False)
"""Nothing goes because it is not needed: what goes here goes for another model."""


def instance(key: str, **more: object) -> FleetInstance:
    return FleetInstance(key, "n", Role.MIXED, Phase.READY, 100, 100, **more)  # type: ignore[arg-type]


def model(name: str, *instances: FleetInstance, **more: object) -> ModelFleet:
    values: dict[str, object] = {
        "traffic": Traffic(1.0),
        "load_time_s": LOAD_S,
        "wake_time_s": WAKE_S,
        "priority": 1,
    }
    return ModelFleet(name, 1, 0, 0, 10.0, 0.2, 2.0, instances, **(values | more))  # type: ignore[arg-type]


def decide(autoscaler: Chiron, now_s: float, *models: ModelFleet) -> list[Action]:
    return list(autoscaler.decide(FleetSnapshot(now_s, models, {"n": 0})).actions)


@pytest.mark.parametrize(("can_sleep", "back_s", "how"), [(True, WAKE_S, Sleep), (False, LOAD_S, Retire)])
def test_an_idle_instance_goes_once_it_has_been_idle_for_as_long_as_its_return_takes(
    can_sleep: bool, back_s: float, how: type
) -> None:
    autoscaler = Chiron(PATIENT)
    idle = model("idle", instance("a", can_sleep=can_sleep))
    waits = model("waits", traffic=WAITING)
    assert decide(autoscaler, 0.0, idle, waits) == []
    assert decide(autoscaler, back_s - 0.1, idle, waits) == []
    (action,) = decide(autoscaler, back_s, idle, waits)
    assert isinstance(action, how)
    assert action.instance_id == "a"
    assert action.reason.startswith("contention: waits waits for GPUs, and idle can spare the instance now")


def test_no_more_go_than_the_other_needs() -> None:
    autoscaler = Chiron(PATIENT)
    idle = model("idle", instance("a"), instance("b"), instance("c"))
    waits = model("waits", traffic=WAITING)
    decide(autoscaler, 0.0, idle, waits)
    assert len(decide(autoscaler, LOAD_S, idle, waits)) == 1


def test_nobody_goes_where_nobody_waits() -> None:
    autoscaler = Chiron(PATIENT)
    models = model("idle", instance("a", can_sleep=True)), model("calm")
    for now_s in (0.0, LOAD_S, 10 * LOAD_S):
        assert decide(autoscaler, now_s, *models) == []


@pytest.mark.parametrize(
    "needed",
    [
        pytest.param({"min_instances": 1}, id="its fewest"),
        pytest.param({"priority": 0}, id="more urgent"),
        pytest.param({"backlog": (BatchBacklog(1e9, 5, 500),)}, id="batch work waits"),
        pytest.param({"traffic": Traffic(1.0, arrived_interactive=1)}, id="asked"),
    ],
)
def test_what_is_needed_stays(needed: dict[str, object]) -> None:
    autoscaler = Chiron(PATIENT)
    values = {"traffic": Traffic(1.0), "min_instances": 0, **needed}
    holder = ModelFleet(
        "holder",
        1,
        max_instances=0,
        ttft_slo_s=10.0,
        itl_slo_s=0.2,
        batch_itl_slo_s=2.0,
        instances=(instance("a", can_sleep=True),),
        load_time_s=LOAD_S,
        wake_time_s=WAKE_S,
        **({"priority": 1} | values),  # type: ignore[arg-type]
    )
    waits = model("waits", traffic=WAITING)
    for tick in range(41):
        assert decide(autoscaler, float(tick), holder, waits) == []


def test_of_a_model_in_use_goes_what_neither_peak_nor_arrivals_need() -> None:
    """100 tokens a request at 1,000 tokens a second and instance: 10 requests a second each."""
    autoscaler = Chiron(PATIENT)

    def busy(running: int, per_s: int) -> ModelFleet:
        each = [instance(key, running_interactive=running, tokens_per_s=running * 50.0) for key in "abcd"]
        traffic = Traffic(
            1.0,
            arrived_interactive=per_s,
            finished_interactive=per_s,
            finished_output_tokens=100 * per_s,
            finished_output_tokens_sq=100.0**2 * per_s,
            finished_prompt_tokens=100 * per_s,
            finished_service_s=2.0 * per_s,
        )
        return model("busy", *each, traffic=traffic)

    gone: list[Action] = []
    for tick in range(200):
        gone = decide(autoscaler, float(tick), busy(20, 40), model("waits", traffic=WAITING))
        if gone:
            break
    # 80 run, where one instance has 100 slots: the one that waits gets what it needs, and 3 stay.
    (action,) = gone
    assert isinstance(action, Retire)
    assert action.reason.startswith("contention: waits waits for GPUs, and busy can spare")
    full = Chiron(PATIENT)
    for tick in range(200):
        assert decide(full, float(tick), busy(95, 190), model("waits", traffic=WAITING)) == []


def test_what_was_given_up_is_not_taken_back_while_the_other_waits() -> None:
    autoscaler = Chiron(PATIENT)
    asked = Traffic(1.0, queued_interactive=50)
    gives = model("a-gives", instance("a", can_sleep=True))
    waits = model("b-waits", traffic=WAITING)
    decide(autoscaler, 0.0, gives, waits)
    (slept,) = decide(autoscaler, WAKE_S, gives, waits)
    assert isinstance(slept, Sleep)
    sleeps = replace(instance("a", can_wake=True), phase=Phase.SLEEPING)
    # It is asked again before its GPU is free, and lacks as much as the other.
    back = model("a-gives", sleeps, traffic=asked)
    assert decide(autoscaler, WAKE_S + 1, back, waits) == []
    freed = FleetSnapshot(WAKE_S + 2, (back, waits), {"n": 1})
    (start,) = autoscaler.decide(freed).actions
    assert isinstance(start, Start)
    assert start.model == "b-waits"


def test_what_the_other_does_not_take_goes_back() -> None:
    autoscaler = Chiron(PATIENT)
    gives = model("a-gives", instance("a", can_sleep=True))
    decide(autoscaler, 0.0, gives, model("b-waits", traffic=WAITING))
    decide(autoscaler, WAKE_S, gives, model("b-waits", traffic=WAITING))
    sleeps = replace(instance("a", can_wake=True), phase=Phase.SLEEPING)
    back = model("a-gives", sleeps, traffic=Traffic(1.0, queued_interactive=50))
    calm = autoscaler.decide(FleetSnapshot(WAKE_S + 1, (back, model("b-waits")), {"n": 1}))
    assert [type(action) for action in calm.actions] == [Wake]
    # A model that cannot start, for whatever reason, does not keep it for ever.
    stuck = Chiron(PATIENT)
    waits = model("b-waits", traffic=WAITING, gpu_type="other")
    for now_s in (0.0, WAKE_S):
        decide(stuck, now_s, gives, model("b-waits", traffic=WAITING))
    late = stuck.decide(FleetSnapshot(WAKE_S + 2 * LOAD_S, (back, waits), {"n": 1}))
    assert [type(action) for action in late.actions] == [Wake]
