"""Policies see reports, and reports are late, sampled, noisy or lost."""

import pytest

from chiron.engine import Speculation
from chiron.policy.decisions import ChangeRole, Limits
from chiron.policy.fleet import load_autoscaler
from chiron.policy.words import Role
from chiron.sim.settings import InvalidSettingError, TelemetrySettings
from tests.support.sim_worlds import FLAT, STEP_S, Script, requests, run, world

STEADY = requests(*[(0.2 * i, 10, 100) for i in range(100)])


def test_a_late_report_tells_of_the_past():
    prompt, late = Script(), Script()
    run(world(telemetry=TelemetrySettings(delay_s=0.01)), STEADY, prompt)
    run(world(telemetry=TelemetrySettings(delay_s=3.0)), STEADY, late)
    assert [snapshot.models[0].instances[0].report_age_s for snapshot in late.snapshots[5:15]] == (
        pytest.approx([3.0] * 10)
    )
    arrived = [snapshot.models[0].traffic.arrived_interactive for snapshot in prompt.snapshots]
    late_arrived = [snapshot.models[0].traffic.arrived_interactive for snapshot in late.snapshots]
    assert late_arrived[:3] == [0, 0, 0]
    assert late_arrived[3:15] == arrived[1:13]


def test_lost_reports_leave_the_last_one_in_force():
    script = Script()
    run(world(telemetry=TelemetrySettings(loss=0.7)), STEADY, script)
    ages = [snapshot.models[0].instances[0].report_age_s for snapshot in script.snapshots]
    assert max(ages) > 1.5


def test_counts_of_lost_reports_come_with_the_next():
    script = Script()
    run(world(telemetry=TelemetrySettings(loss=0.5, delay_s=0.01)), STEADY, script)
    told = sum(snapshot.models[0].traffic.arrived_interactive for snapshot in script.snapshots)
    assert 80 <= told <= 100


class Watcher:
    """A local autoscaler that changes nothing and keeps its samples."""

    def __init__(self):
        self.samples = []

    def decide(self, sample):
        self.samples.append(sample)
        return Limits(sample.batch_size, sample.step_token_budget, 5, "watching")


def test_samples_tell_what_an_interval_held():
    watcher = Watcher()
    script = Script()
    run(
        world(batch_size=2),
        requests((0.0, 10, 350), (0.0, 10, 350), (0.5, 10, 10)),
        script,
        local=lambda: watcher,
    )
    first, second = watcher.samples[:2]
    # Both slots are taken from the start, and a third request waits from 0.5 s on.
    assert (second.running_interactive, second.waiting_interactive, second.steps) == (2, 1, 100)
    assert second.output_tokens == 200
    assert second.itl_mean_s == pytest.approx(STEP_S)
    assert second.itl_p95_s == pytest.approx(STEP_S)
    assert second.itl_slo_s == 0.2
    assert first.saturated
    assert second.saturated
    assert script.snapshots[2].models[0].instances[0].safe_batch_size == 5


def test_reports_and_samples_tell_what_steps_computed_drafts_included():
    # Two requests with two drafts each, all accepted: in each step three tokens computed and three out.
    watcher, script = Watcher(), Script()
    profile = FLAT.replace(speculation=Speculation(2, 1.0))
    settings = world(profile=profile, batch_size=2, telemetry=TelemetrySettings(delay_s=0.01))
    run(settings, requests((0.0, 10, 1000), (0.0, 10, 1000)), script, local=lambda: watcher)
    second = watcher.samples[1]
    assert (second.steps, second.output_tokens, second.prompt_tokens) == (100, 600, 0)
    assert (second.draft_tokens, second.accepted_tokens) == (400, 400)
    assert (second.decodes, second.computed_tokens) == (200, 600)
    seen = script.snapshots[2].models[0].instances[0]
    assert (seen.step_tokens, seen.step_token_budget) == (6.0, FLAT.default_step_token_budget)
    # The first interval computed the prompts, too: 20 tokens more, over its 100 steps.
    assert 6.0 < script.snapshots[1].models[0].instances[0].step_tokens < 6.3


def test_a_change_of_role_does_not_cut_a_sample_short():
    # One request runs throughout, a token each 10 ms; the role changes in the middle of the second interval.
    watcher = Watcher()
    script = Script({1.5: [ChangeRole("m", "m-00000", Role.INTERACTIVE, "x")]})
    run(world(tick_s=0.5), requests((0.0, 10, 390)), script, local=lambda: watcher)
    for sample in watcher.samples[1:3]:
        assert (sample.interval_s, sample.output_tokens) == (pytest.approx(1.0), 100)


def test_an_interval_is_saturated_when_slots_were_taken_throughout_it():
    # Both slots are taken from 0 to 1.2 s and from 1.8 to 3.8 s: at both ends of the second interval.
    watcher = Watcher()
    rows = [(0.0, 10, 120), (0.0, 10, 120), (1.8, 10, 200), (1.8, 10, 200)]
    run(world(batch_size=2), requests(*rows, (5.2, 10, 1)), local=lambda: watcher)
    assert [sample.saturated for sample in watcher.samples] == [True, False, True, False, False]


def test_a_slot_that_is_handed_over_leaves_an_interval_saturated():
    # Requests of 0.4 s one after the other; the router fills the slot 20 ms after it has become free.
    watcher = Watcher()
    short = [(0.01 * i, 10, 40) for i in range(20)]
    settings = world({Role.MIXED: 1}, batch_size=1, engine_queue=0)
    run(settings, requests(*short), local=lambda: watcher)
    assert [sample.saturated for sample in watcher.samples[:3]] == [True] * 3


def test_noise_is_on_what_is_measured_and_leaves_what_happens_alone():
    quiet, noisy = Watcher(), Watcher()
    calm = run(world(), STEADY, local=lambda: quiet)
    other = run(world(telemetry=TelemetrySettings(noise=0.3)), STEADY, local=lambda: noisy)
    assert list(calm.outcomes.finish_s) == list(other.outcomes.finish_s)
    assert {sample.itl_mean_s for sample in quiet.samples} != {sample.itl_mean_s for sample in noisy.samples}


def test_the_router_sees_a_change_at_a_worker_when_its_message_has_come():
    # One slot and no queue: it is free at 0.1, and known to be at 0.1 + the delay.
    for delay_s in (0.005, 0.5):
        telemetry = TelemetrySettings(view_delay_s=delay_s)
        settings = world({Role.MIXED: 1}, batch_size=1, engine_queue=0, telemetry=telemetry)
        result = run(settings, requests((1.0, 10, 10), (1.01, 10, 1)))
        assert result.outcomes.first_token_s[1] > 1.1 + STEP_S
        assert result.outcomes.first_token_s[1] <= 1.1 + 2 * delay_s + 2 * STEP_S
        assert delay_s < 0.1 or result.outcomes.first_token_s[1] > 1.5


class Seesaw:
    """A local autoscaler that halves and doubles the batch size in turn, and notes what its engine holds."""

    def __init__(self, held):
        self.held = held

    def decide(self, sample):
        running = sample.running_interactive + sample.running_batch
        self.held.append(running + sample.waiting_interactive + sample.waiting_batch)
        return Limits(4 if sample.batch_size == 8 else 8, 2048, 8, "seesaw")


@pytest.mark.parametrize(("delay_s", "view_delay_s"), [(0.05, 0.02), (5.0, 0.5)])
def test_late_views_and_late_reports_lose_nothing_and_run_away_with_nothing(delay_s, view_delay_s):
    # Interactive requests at 20 a second for 40 s, 0.2 s each, and 600 batch requests: two instances' worth.
    rows = [(0.05 * i, 10, 20) for i in range(800)] + [(1.0, 10, 20, 100.0)] * 600
    telemetry = TelemetrySettings(delay_s=delay_s, view_delay_s=view_delay_s)
    held = []
    settings = world(telemetry=telemetry, model={"max_batch_size": 8})
    result = run(settings, requests(*rows), load_autoscaler("chiron"), local=lambda: Seesaw(held))
    # Conservation of requests and tokens is asserted in every run.
    assert (result.unfinished, result.refused) == (0, 0)
    assert result.slo_attainment.batch == 1.0
    # A router that saw 8 slots sends to those and the 2 that may wait, and half the slots may be gone since.
    assert max(held) <= 8 + 2
    # What is decided on old reports is not taken back by the next ones.
    assert result.reversals == 0


def test_a_view_older_than_a_batch_credit_is_refused():
    with pytest.raises(
        InvalidSettingError, match="view_delay_s: must be below 2, the life of a batch credit"
    ):
        TelemetrySettings(view_delay_s=2.0)
