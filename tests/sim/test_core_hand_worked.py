"""Scenarios small enough to work out by hand: every step takes 10 ms."""

import pytest

from chiron.policy.decisions import ChangeRole, Retire, Sleep, Start, Wake
from chiron.policy.words import Phase, Role
from tests.support.sim_worlds import Script, requests, run, world


def test_three_requests_on_one_instance():
    # The second comes during a step and begins with the next; the third finds the engine idle.
    result = run(world(), requests((0.0, 10, 3), (0.005, 10, 2), (0.1, 10, 1)))
    assert list(result.outcomes.first_token_s) == pytest.approx([0.01, 0.02, 0.11])
    assert list(result.outcomes.finish_s) == pytest.approx([0.03, 0.03, 0.11])
    assert result.slo_attainment.all == 1.0
    assert result.gpu_hours == pytest.approx(0.11 / 3600)
    assert result.gpu_cost == pytest.approx(3.0 * 0.11 / 3600)
    assert result.throughput.tokens_per_s == pytest.approx(6 / 0.11)
    assert result.ttft_ms.p50 == pytest.approx(10.0)
    # (30 - 10) / 2 and (30 - 20) / 1; a single token has no gap.
    assert (result.itl_ms.p50, result.itl_ms.p99) == pytest.approx((10.0, 10.0))


def test_a_full_batch_makes_the_next_request_wait_for_a_slot():
    result = run(world(batch_size=1), requests((0.0, 10, 3), (0.005, 10, 2)))
    assert list(result.outcomes.first_token_s) == pytest.approx([0.01, 0.04])
    assert list(result.outcomes.finish_s) == pytest.approx([0.03, 0.05])


def test_slos_are_judged_from_arrival_and_by_the_mean_itl():
    late = world(batch_size=1, model={"ttft_slo_s": 0.034})
    assert run(late, requests((0.0, 10, 3), (0.005, 10, 2))).slo_attainment.interactive == 0.5
    slow = world(model={"itl_slo_s": 0.0099})
    assert run(slow, requests((0.0, 10, 3))).slo_attainment.interactive == 0.0


def test_an_interactive_request_takes_the_slot_of_a_batch_request():
    # At 0.305 the batch request is in its 31st step; that step ends at 0.31 and its token is kept.
    result = run(world(batch_size=1), requests((0.0, 10, 100, 60.0), (0.305, 10, 2)))
    assert result.preemptions == 1
    assert result.outcomes.first_token_s[1] == pytest.approx(0.32)
    assert result.outcomes.finish_s[1] == pytest.approx(0.33)
    # It waits in the engine and goes on at once; 69 tokens are left of the 100.
    assert result.outcomes.finish_s[0] == pytest.approx(0.33 + 0.69)
    assert result.slo_attainment.batch == 1.0


def test_a_batch_request_without_progress_keeps_its_slot():
    # Five tokens are fewer than the 16 before which nobody is preempted.
    result = run(world(batch_size=1), requests((0.0, 10, 30, 60.0), (0.045, 10, 1)))
    assert result.preemptions == 0
    assert list(result.outcomes.finish_s) == pytest.approx([0.3, 0.31])


def test_a_batch_request_does_not_stay_queued_in_an_engine_where_interactive_ones_go_first():
    # One runs until 10, one waits behind it in an engine that becomes mixed. At 5 it is handed back, and goes
    # to the instance that has been ready since 3.
    script = Script(
        {1.0: [ChangeRole("m", "m-00000", Role.MIXED, "x"), Start("m", Role.MIXED, 1, "x")]},
    )
    settings = world({Role.BATCH: 1}, batch_size=1, engine_queue=1)
    result = run(settings, requests((0.0, 10, 1000, 60.0), (0.0, 10, 10, 60.0)), script)
    assert result.outcomes.finish_s[0] == pytest.approx(10.0)
    assert result.outcomes.first_token_s[1] == pytest.approx(5.01)
    assert result.preemptions == 0


def test_an_instance_serves_once_it_has_loaded_and_counts_from_its_placement():
    script = Script({1.0: [Start("m", Role.MIXED, 1, "first")]})
    result = run(world({}), requests((0.0, 10, 2)), script)
    # Placed at 1, ready at 3, seen by the router 20 ms later.
    assert result.outcomes.first_token_s[0] == pytest.approx(3.03)
    assert result.gpu_hours == pytest.approx((3.04 - 1.0) / 3600)
    assert result.gpus_peak == 1
    assert result.scaling_actions == 1
    assert [point.loading for point in result.timeline] == [1, 1, 0]
    # From the profile's load time; the controller has placed it and so knows of it at once.
    assert script.snapshots[1].models[0].instances[0].ready_in_s == pytest.approx(1.0)


def test_a_retiring_instance_finishes_what_it_runs_and_then_frees_its_gpu():
    script = Script({1.0: [Retire("m", "m-00000", "enough")]})
    settings = world({Role.MIXED: 2})
    result = run(settings, requests((0.95, 10, 20), (0.951, 10, 200)), script)
    assert result.outcomes.finish_s[0] == pytest.approx(1.15)
    # The first instance ends at 1.15 and its GPU is known to be free 50 ms later; the other at 2.951.
    assert result.gpu_hours == pytest.approx((1.2 + 2.951) / 3600)


def test_a_sleeping_instance_keeps_its_gpu_and_wakes():
    script = Script(
        {
            1.0: [Sleep("m", "m-00000", "idle")],
            3.0: [Wake("m", "m-00000", Role.MIXED, "demand")],
        }
    )
    result = run(world(model={"wake_time_s": 0.5, "sleep_level": 1}), requests((2.0, 10, 1)), script)
    assert result.outcomes.first_token_s[0] == pytest.approx(3.53)
    assert [each.models[0].instances[0].phase for each in script.snapshots] == [
        Phase.READY,
        Phase.SLEEPING,
        Phase.SLEEPING,
    ]
    assert result.gpu_hours == pytest.approx(3.53 / 3600)


def test_taking_an_action_back_within_a_load_time_is_a_reversal():
    script = Script(
        {
            1.0: [Start("m", Role.MIXED, 1, "more")],
            2.0: [Retire("m", "m-00001", "less"), ChangeRole("m", "m-00000", Role.INTERACTIVE, "try")],
            10.0: [ChangeRole("m", "m-00000", Role.MIXED, "back")],
        }
    )
    result = run(world(), requests((11.0, 10, 1)), script)
    assert (result.scaling_actions, result.reversals) == (4, 1)
    assert [action.kind for action in result.actions] == ["start", "retire", "change-role", "change-role"]


def test_a_full_queue_refuses_and_a_refusal_is_a_miss():
    settings = world({Role.BATCH: 1}, queue_limit=1, horizon_s=2.0)
    result = run(settings, requests((0.0, 10, 1), (0.1, 10, 1)))
    assert (result.refused, result.unfinished) == (1, 1)
    assert result.slo_attainment.interactive == 0.0


def test_the_run_ends_when_the_last_batch_request_has_missed_its_deadline():
    result = run(world({Role.INTERACTIVE: 1}), requests((0.0, 10, 1), (0.0, 10, 5, 4.0)))
    assert result.simulated_s == pytest.approx(4.0)
    assert result.gpu_hours == pytest.approx(4.0 / 3600)
    assert (result.slo_attainment.batch, result.slo_attainment.interactive) == (0.0, 1.0)


def test_the_warm_up_counts_in_no_figure():
    result = run(world(warmup_s=1.0), requests((0.0, 10, 2), (1.5, 10, 1)))
    assert (result.requests, result.counted) == (2, 1)
    assert result.gpu_hours == pytest.approx((1.51 - 1.0) / 3600)
    assert result.throughput.requests_per_s == pytest.approx(1 / 0.51)


def test_a_reloaded_cache_spares_the_recomputation():
    from tests.support.sim_worlds import FLAT

    # A prompt of 1,000 tokens takes ten steps at 100 tokens a step, or 0.1 s to copy back.
    profile = FLAT.replace(default_step_token_budget=100, kv_bytes_per_token=1000)
    work = requests((0.0, 1000, 100, 60.0), (0.5, 10, 1))
    again = run(world(batch_size=1, profile=profile), work)
    copied = run(
        world(batch_size=1, profile=profile, resume_cost="kv-reload", kv_reload_bytes_per_s=1e9), work
    )
    assert (again.preemptions, copied.preemptions) == (1, 1)
    assert copied.outcomes.finish_s[0] < again.outcomes.finish_s[0] - 0.08
