"""Batch instances that come late and go early: figures worked by hand.

Nothing has been seen to run, so that an instance of 100 slots is presumed to make 1,000 tokens a second and a
request to take 256 tokens, of which little is sure (ten observations): N requests are N x 256 x 1.68 at
the 95 % quantile. One mixed instance spares all its slots. The longest of 200 requests is presumed to take
4,970 tokens, so 497 s; with 26 s for a mean one and two load times the reserve is 563 s.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.policy.decisions import Action, ChangeRole, Retire, Start
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.fleet.batch import group_work
from chiron.policy.fleet.state import ModelState
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S, HOUR_S = 20.0, 3_600.0


def instance(key: str, role: Role, phase: Phase = Phase.READY, **more: object) -> FleetInstance:
    told: dict[str, object] = {"phase_age_s": 60.0} | more
    return FleetInstance(key, "n", role, phase, 100, 100, **told)  # type: ignore[arg-type]


def model(*instances: FleetInstance, requests: int, due_s: float = HOUR_S, fewest: int = 0) -> ModelFleet:
    backlog = (BatchBacklog(due_s, requests, 0),) if requests else ()
    return ModelFleet(
        "m",
        1,
        fewest,
        0,
        10.0,
        0.2,
        2.0,
        instances,
        Traffic(1.0),
        backlog,
        load_time_s=LOAD_S,
        initial_batch_size=100,
    )


def actions(fleet: ModelFleet, settings: ChironSettings | None = None) -> tuple[Action, ...]:
    return Chiron(settings).decide(FleetSnapshot(0.0, (fleet,), {"n": 100})).actions


MIXED = instance("mixed", Role.MIXED)


@pytest.mark.parametrize(
    # By 3,037 s the mixed one makes 3.04 million tokens: as many as 6,720 requests with the margin of 5 %.
    ("requests", "settings", "goes"),
    [
        (6_500, ChironSettings(), True),
        (7_000, ChironSettings(), False),
        (6_500, ChironSettings(taper_margin=0.2), False),
        (7_000, ChironSettings(taper_margin=0.0), True),
    ],
)
def test_a_batch_instance_goes_once_spared_slots_do_the_rest_in_time(
    requests: int, settings: ChironSettings, goes: bool
) -> None:
    done = actions(model(MIXED, instance("b", Role.BATCH), requests=requests), settings)
    assert [type(action) for action in done] == [Retire] * goes
    for action in done:
        assert "in time" in action.reason
        keep = action.alternatives[0]
        assert keep.action == "keep it"
        assert keep.numbers["work"] <= keep.numbers["made"] == pytest.approx(3_037_000, rel=1e-3)


def test_of_several_as_many_go_as_the_work_allows() -> None:
    # Two instances make 6.07 million by then, as many as 13,400 requests; three one half more.
    batch = [instance(key, Role.BATCH) for key in "bcd"]
    done = actions(model(MIXED, *batch, requests=13_000))
    assert [type(action) for action in done] == [Retire, Retire]
    assert actions(model(MIXED, *batch, requests=20_500)) == ()


@pytest.mark.parametrize(
    "others",
    [
        (instance("b", Role.BATCH, phase_age_s=39.0),),
        (instance("b", Role.BATCH), instance("l", Role.BATCH, Phase.LOADING, ready_in_s=10.0)),
    ],
)
def test_nobody_goes_while_what_was_added_is_young(others: tuple[FleetInstance, ...]) -> None:
    assert actions(model(MIXED, *others, requests=1_000)) == ()


def test_no_further_than_the_fewest_instances() -> None:
    (change,) = actions(model(MIXED, instance("b", Role.BATCH), requests=1_000, fewest=2))
    assert isinstance(change, ChangeRole)
    assert change.role is Role.MIXED
    assert "min_instances 2" in change.reason


def test_spared_slots_are_not_trusted_for_ever() -> None:
    # In 200 load times they make 4 million tokens: as many as 8,800 requests, however late these are due.
    batch = instance("b", Role.BATCH)
    assert len(actions(model(MIXED, batch, requests=8_500, due_s=1e6))) == 1
    assert actions(model(MIXED, batch, requests=9_500, due_s=1e6)) == ()


def starts(*, requests: int, due_s: float, seen_s: int = 200, tick_s: int = 10) -> int:
    """Instances that start where a backlog, which is due in `due_s` now, was first seen `seen_s` ago."""
    chiron, mixed = Chiron(), instance("i", Role.MIXED)
    for at_s in range(0, seen_s, tick_s):
        fleet = model(mixed, requests=requests, due_s=due_s + seen_s - at_s)
        chiron.decide(FleetSnapshot(float(at_s), (fleet,), {"n": 0}))
    fleet = model(mixed, requests=requests, due_s=due_s)
    done = chiron.decide(FleetSnapshot(float(seen_s), (fleet,), {"n": 100})).actions
    return sum(action.count for action in done if isinstance(action, Start))


def requests_for(instances: float) -> int:
    """As many as so many further instances do within an hour beside the mixed one.

    The longest of 100 requests is presumed to take 411 s, and the reserve is 477 s: the mixed one makes 3.12
    million tokens by then, and one that loads for 20 s makes 3.1 million.
    """
    return int((3.12e6 + instances * 3.1e6) / 256)


@pytest.mark.parametrize(("missing", "count"), [(0.4, 0), (0.6, 1), (1.4, 1), (1.6, 2), (9.4, 9)])
def test_what_is_missing_of_an_instance_may_wait_while_there_is_time(missing: float, count: int) -> None:
    # Of 3,120 s four load times are 2.6 %, so that 0.49 of an instance may be missing.
    assert starts(requests=requests_for(missing), due_s=HOUR_S) == count


@pytest.mark.parametrize(("requests", "count"), [(225, 0), (300, 1)])
def test_near_the_deadline_less_may_be_missing(requests: int, count: int) -> None:
    # Half of 200 s is the reserve: the mixed one makes 100,000 tokens by then, a new one 80,000. 225 requests
    # are 97,000 tokens at the quantile, and 300 are 129,000: of a new one 0.36 is missing, and 0.15 may be.
    assert starts(requests=requests, due_s=200.0) == count


@pytest.mark.parametrize(("missing", "count"), [(1.8, 0), (9.4, 3)])
def test_while_the_first_requests_tell_only_what_is_surely_needed_starts(missing: float, count: int) -> None:
    # Half as long, they are 4.35 and 16.1 million tokens, due in an hour: the mixed one makes 3.6 million by
    # then, and one that loads 3.58 million.
    assert starts(requests=requests_for(missing), due_s=HOUR_S, seen_s=10) == count


def test_first_requests_tell_no_longer_where_ticks_are_further_apart_than_a_load_takes() -> None:
    assert starts(requests=requests_for(9.4), due_s=HOUR_S, seen_s=150, tick_s=30) == 9


def told(chiron: Chiron, now_s: float, safe: int) -> int:
    """Instances started where an engine that runs 90 requests tells this safe batch size."""
    busy = FleetInstance("a", "n", Role.MIXED, Phase.READY, 120, safe, running_interactive=90)
    done = chiron.decide(FleetSnapshot(now_s, (model(busy, requests=0),), {"n": 100})).actions
    return sum(action.count for action in done if isinstance(action, Start))


def test_a_local_autoscaler_that_learns_anew_starts_no_instance_for_a_moment() -> None:
    chiron = Chiron(ChironSettings(default_theta=0.8, ttft_share=0.0))
    assert [told(chiron, at, safe) for at, safe in enumerate((120, 27, 1, 120, 27, 27))] == [0] * 6
    # 90 requests at a target of 0.8 need 112.5 slots, and an instance has 27.
    assert told(chiron, 6, 27) == 4


def ended(chiron: Chiron, count: int, requests: int) -> tuple[Action, ...]:
    """What is done about 90 running batch requests and those that wait, where so many have ended."""
    traffic = Traffic(
        1.0,
        finished_batch=count,
        finished_output_tokens=256 * count,
        finished_output_tokens_sq=256.0**2 * 2 * count,
        finished_batch_output_tokens=256 * count,
        finished_batch_output_tokens_sq=256.0**2 * 2 * count,
    )
    there = model(MIXED, instance("b", Role.BATCH, running_batch=90), requests=requests)
    fleet = replace(there, traffic=traffic)
    return chiron.decide(FleetSnapshot(0.0, (fleet,), {"n": 100})).actions


def test_as_long_as_few_have_ended_the_margin_is_large() -> None:
    # 5,000 requests are little more than 1.3 million tokens, where their length is known: 90 that run beside
    # 30 that have ended make that four times as much, and the mixed instance makes 3 million.
    assert ended(Chiron(), 30, 5_000) == ()
    assert [type(action) for action in ended(Chiron(), 3_000, 5_000)] == [Retire]


@pytest.mark.parametrize(("requests", "due_s", "count"), [(0, 900.0, 2), (20, 900.0, 1), (20, 450.0, 0)])
def test_interactive_instances_stay_where_a_batch_instance_would_come_in_their_stead(
    requests: int, due_s: float, count: int
) -> None:
    # Nobody asks for anything interactive: a minute later both may go, but for batch requests that wait. Less
    # than 20 load times before these are due both stay.
    chiron, both = Chiron(), (instance("a", Role.MIXED), instance("b", Role.MIXED))
    done: tuple[Action, ...] = ()
    for at_s in range(0, 70, 10):
        assert not done
        fleet = model(*both, requests=requests, due_s=due_s - at_s)
        done = chiron.decide(FleetSnapshot(float(at_s), (fleet,), {"n": 0})).actions
    assert [type(action) for action in done] == [Retire] * count


@pytest.mark.parametrize(("arriving", "itl_s"), [(20, 0.2), (13, 0.0417)])
def test_the_last_requests_are_as_slow_as_interactive_ones_leave_the_instances(
    arriving: int, itl_s: float
) -> None:
    # n requests make a token each in 0.02 + 0.0008 n seconds: 100 of them 1,000 tokens a second, so that one
    # instance serves 10 requests of 100 tokens. 20 that come a second keep two of the three full once the
    # batch is done, and slow them down to the ITL SLO; 13 take 650 tokens a second of each, 27 running
    # requests. The fit has a prior, and is near it.
    state, chosen = ModelState(ChironSettings(), 0.0), ChironSettings()
    traffic = Traffic(
        1.0, arriving, 0, 0, arriving, 0, 100 * arriving, finished_output_tokens_sq=2e4 * arriving
    )
    for at_s in range(400):
        running = 100 if at_s % 2 else 50
        rate = running / (0.02 + 0.0008 * running)
        full = [
            instance(
                key, Role.MIXED, running_interactive=running, tokens_per_s=rate, waiting_batch=running // 100
            )
            for key in "abc"
        ]
        fleet = replace(model(*full, requests=100), traffic=traffic, max_context_tokens=1_000)
        supply = state.observe(fleet, float(at_s))
    (work,) = group_work(fleet, supply, state, chosen)
    assert work.last_s == pytest.approx(256 * 0.1 + 1_000 * itl_s, rel=0.05)
