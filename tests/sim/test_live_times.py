"""A simulation that takes over when a live cluster decided, reported, loaded and gave notice."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Retire, Start
from chiron.policy.words import Phase, Role
from chiron.sim.live_times import LiveTimes, next_time
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import Script, requests, run, world

STEADY = requests(*[(0.1 * i + 0.05, 10, 20) for i in range(60)])


def test_after_the_last_time_an_interval_goes_on() -> None:
    assert [next_time((0.4, 1.5), now, 1.0) for now in (0.0, 0.4, 1.5)] == [0.4, 1.5, 2.5]


def test_the_autoscaler_ticks_when_it_did() -> None:
    script = Script()
    run(world(tick_s=1.1, live=LiveTimes(ticks_s=(0.3, 1.4))), STEADY, script)
    assert [snapshot.now_s for snapshot in script.snapshots[:4]] == pytest.approx([0.3, 1.4, 2.5, 3.6])


def test_reports_come_when_they_came() -> None:
    script = Script()
    live = LiveTimes(
        ticks_s=(1.0, 2.0, 3.0),
        router_reports_s=(0.2, 1.2, 2.2),
        node_reports_s=((0.7, 1.7, 2.7), (0.4, 1.4, 2.4)),
        samples_s=(0.5, 1.5, 2.5),
    )
    run(world({Role.MIXED: 2}, live=live), STEADY, script)
    first, second = script.snapshots[2].models[0].instances
    assert first.node_id != second.node_id
    # One was counted at 2.5 and told of at 2.7; what was told of the other at 2.4 had been counted at 1.5.
    assert [first.report_age_s, second.report_age_s] == pytest.approx([0.5, 1.5])
    assert script.snapshots[2].models[0].traffic.interval_s == pytest.approx(1.0)
    assert script.snapshots[2].models[0].traffic.arrived_interactive == 10


def test_a_report_tells_what_was_counted_with_its_token_rate() -> None:
    script = Script()
    live = LiveTimes(ticks_s=(2.0,), node_reports_s=((1.9,), (1.9,)), samples_s=(0.5, 1.5))
    # It runs when it is counted, and has ended when that is told.
    run(world(live=live), requests((0.2, 10, 150), (4.0, 10, 1)), script)
    [instance] = script.snapshots[0].models[0].instances
    assert (instance.running_interactive, instance.tokens_per_s) == (1, pytest.approx(100))


def test_instances_load_for_as_long_as_they_did() -> None:
    script = Script({1.0: [Start("m", Role.MIXED, 2, "x")], 2.0: [Start("m", Role.MIXED, 1, "x")]})
    live = LiveTimes(loads_s={"m": (1.5, 4.5)})
    run(world(live=live), requests(*[(0.1 * i, 10, 20) for i in range(90)]), script)
    ready = [
        sum(one.phase is Phase.READY for one in snapshot.models[0].instances) for snapshot in script.snapshots
    ]
    # At 2.5 and at 5.5; the third takes the profile's 2 s, from 2 to 4.
    assert ready[:6] == [1, 1, 2, 2, 3, 4]


def test_load_times_measured_before_are_known_and_others_presumed() -> None:
    known, presumed, plain = Script(), Script(), Script()
    run(world(live=LiveTimes(known_loads_s={"m": (7.0,)}, presumed_load_s=30.0)), STEADY, known)
    run(world(live=LiveTimes(presumed_load_s=30.0)), STEADY, presumed)
    run(world(), STEADY, plain)
    assert [each.snapshots[0].models[0].load_time_s for each in (known, presumed, plain)] == [7.0, 30.0, 2.0]


def test_an_instance_under_notice_finishes_what_it_has_and_keeps_its_gpu() -> None:
    script = Script({1.0: [Retire("m", "m-00000", "enough")]})
    settings = world({Role.MIXED: 2}, batch_size=1, live=LiveTimes(drain_notice_s=2.0))
    # A third one waits in the engine of the first instance when notice is given; nobody else has a slot.
    work = requests((0.95, 10, 20), (0.951, 10, 400), (0.96, 10, 20), (1.5, 10, 20))
    result = run(settings, work, script)
    assert result.outcomes.finish_s[2] == pytest.approx(1.35)
    # What comes later goes elsewhere, and waits there.
    assert result.outcomes.finish_s[3] == pytest.approx(5.151)
    # The first instance is told at 3, and its GPU known to be free 50 ms later.
    assert result.gpu_hours == pytest.approx((3.05 + 5.151) / 3600)


def test_an_instance_that_fails_under_notice_is_gone() -> None:
    script = Script({1.0: [Retire("m", "m-00000", "enough")]})
    faults = FaultSettings(planned=(Fault(1.5, "instance", 0),))
    settings = world({Role.MIXED: 2}, live=LiveTimes(drain_notice_s=2.0), faults=faults)
    result = run(settings, requests((4.0, 10, 1)), script)
    assert result.gpu_hours == pytest.approx((1.55 + 4.01) / 3600)


def test_a_router_that_sends_batch_requests_one_by_one_spreads_them_over_what_becomes_ready_meanwhile() -> (
    None
):
    def running(live: LiveTimes) -> tuple[list[float], list[int]]:
        script = Script({0.05: [Start("m", Role.BATCH, 1, "x")]})
        settings = world({Role.BATCH: 1}, batch_size=4, model={"load_time_s": 0.1}, live=live)
        result = run(settings, requests(*[(0.0, 10, 200, 60.0)] * 4), script)
        last = script.snapshots[1].models[0].instances
        return list(result.outcomes.first_token_s), [each.running_batch for each in last]

    # The second instance is ready at 0.15, and the emptier one then.
    first_s, spread = running(LiveTimes(ticks_s=(0.05, 1.5), batch_send_s=0.1))
    assert first_s == pytest.approx([0.01, 0.11, 0.21, 0.31])
    assert spread == [2, 2]
    first_s, spread = running(LiveTimes(ticks_s=(0.05, 1.5)))
    # All at 0: the engine begins its first step with the first of them.
    assert first_s == pytest.approx([0.01, 0.02, 0.02, 0.02])
    assert spread == [4, 0]
