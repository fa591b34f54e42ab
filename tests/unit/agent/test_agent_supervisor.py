"""The next step of one instance, decided from what is wanted and what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Kept, Policy, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.status import status_of
from services.local_agent.supervisor import plan

POLICY = Policy(
    max_restarts=3,
    max_load_retries=1,
    restart_backoff_s=2.0,
    stable_after_s=60.0,
    load_timeout_s=100.0,
    silence_timeout_s=20.0,
)
WANT = Want(
    instance_id="m-1",
    goal=Goal.RUNNING,
    spec=cluster_pb2.ModelSpec(name="m", engine="sim"),
    generation=1,
    spec_version=1,
    gpus=(0, 1),
    drain_timeout_s=7.0,
)
CRASH = Failure(FailureKind.CRASH, "killed by SIGKILL")
CANNOT_LOAD = Failure(FailureKind.LOAD, "no such file: weights")
NOW = 1000.0


def heard(state: types_pb2.InstanceState.ValueType, reason: str = "") -> Heard:
    load = cluster_pb2.InstanceLoad(batch_size=8, step_token_budget=512)
    return Heard(state, reason, types_pb2.ROLE_MIXED, "127.0.0.1:5000", load)


LAUNCHED = Have().claimed(WANT.gpus).launched(incarnation=1, spec_version=1, now=NOW)
READY = LAUNCHED.told(heard(types_pb2.INSTANCE_STATE_READY), NOW)


def step(want: Want, have: Have, now: float = NOW) -> steps.Step:
    return plan(want, have, now, POLICY)


def crashed(have: Have, now: float = NOW, failure: Failure = CRASH) -> Have:
    return have.exited("killed by SIGKILL").gone(failure, now, POLICY)


def test_a_new_instance_takes_its_gpus_then_starts() -> None:
    assert step(WANT, Have()) == steps.Claim((0, 1))
    claimed = Have().claimed((0, 1))
    assert step(WANT, claimed) == steps.CheckGpus((0, 1))
    assert step(WANT, claimed.looked_at("", NOW)) == steps.Launch()


def test_an_instance_whose_gpus_are_held_waits_and_says_why() -> None:
    have = Have().stopped_by("GPU 0 is still held by m-0")
    assert step(WANT, have) == steps.Idle()
    status = status_of(WANT, have, "node")
    assert (status.state, status.reason) == (
        types_pb2.INSTANCE_STATE_PENDING,
        "GPU 0 is still held by m-0",
    )
    assert step(WANT, have.unblocked()) == steps.Claim((0, 1))


def test_a_loading_worker_has_until_the_load_timeout() -> None:
    loading = LAUNCHED.told(heard(types_pb2.INSTANCE_STATE_LOADING), NOW + 50)
    assert step(WANT, loading, NOW + 99) == steps.Idle(NOW + 100)
    assert step(WANT, loading, NOW + 100) == steps.Terminate(
        Failure(FailureKind.LOAD, "not ready within 100 s (load_timeout_s)")
    )


def test_a_ready_worker_as_wanted_is_left_alone() -> None:
    assert step(WANT, READY) == steps.Idle(NOW + 20)


def test_a_ready_worker_that_falls_silent_is_replaced() -> None:
    assert step(WANT, READY, NOW + 20) == steps.Terminate(
        Failure(FailureKind.CRASH, "no statistics for 20 s (silence_timeout_s)")
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"role": types_pb2.ROLE_BATCH}, steps.SetRole(types_pb2.ROLE_BATCH)),
        ({"batch_size": 16}, steps.SetLimits(16, 0)),
        ({"step_token_budget": 256}, steps.SetLimits(0, 256)),
        ({"batch_size": 8, "step_token_budget": 256}, steps.SetLimits(0, 256)),
        ({"goal": Goal.SLEEPING}, steps.PutToSleep()),
        ({"goal": Goal.STOPPED}, steps.Drain(7.0)),
        ({"goal": Goal.STOPPED, "at_once": True}, steps.Terminate(None)),
        ({"spec_version": 2}, steps.Drain(7.0)),
        ({"gpus": (2, 3)}, steps.Drain(7.0)),
    ],
)
def test_a_change_of_level_is_applied_to_the_live_worker(
    change: dict[str, object], expected: steps.Step
) -> None:
    assert step(replace(WANT, **change), READY) == expected  # type: ignore[arg-type]


def test_where_no_version_is_named_whatever_runs_is_left_alone() -> None:
    assert step(replace(WANT, spec_version=0), READY) == steps.Idle(NOW + 20)


def test_a_refused_command_is_repeated_later_not_at_once() -> None:
    want = replace(WANT, role=types_pb2.ROLE_BATCH)
    refused = READY.refused("no", NOW)
    assert step(want, refused) == steps.Idle(NOW + 5)
    assert step(want, refused, NOW + 5) == steps.SetRole(types_pb2.ROLE_BATCH)


def test_a_drained_worker_goes_even_when_it_is_wanted_again() -> None:
    assert step(WANT, READY.drained()) == steps.Terminate(None)
    after = READY.drained().exited("exit status 0").gone(None, NOW, POLICY)
    assert step(WANT, after) == steps.CheckGpus((0, 1))
    assert step(WANT, after.looked_at("", NOW)) == steps.Launch()
    assert after.failures == 0


def test_a_stopped_instance_gives_its_gpus_back_only_when_the_processes_are_gone() -> None:
    want = replace(WANT, goal=Goal.STOPPED)
    exited = READY.drained().exited("exit status 0")
    assert step(want, exited) == steps.Terminate(None)
    assert status_of(want, exited, "node").state == types_pb2.INSTANCE_STATE_DRAINING
    gone = exited.gone(None, NOW, POLICY)
    assert step(want, gone) == steps.CheckGpus((0, 1))
    assert status_of(want, gone, "node").state == types_pb2.INSTANCE_STATE_DRAINING
    held = gone.looked_at("GPU 0 is not free: process 7 computes on it", NOW)
    assert step(want, held) == steps.Idle(NOW + 1)
    assert step(want, held, NOW + 1) == steps.CheckGpus((0, 1))
    status = status_of(want, held, "node")
    assert (status.state, status.reason) == (types_pb2.INSTANCE_STATE_DRAINING, held.occupied)
    gone = held.looked_at("", NOW + 1)
    assert step(want, gone) == steps.Release()
    assert step(want, gone.released()) == steps.Idle()
    assert status_of(want, gone.released(), "node").state == types_pb2.INSTANCE_STATE_STOPPED


def test_an_instance_that_was_never_there_is_stopped_already() -> None:
    want = replace(WANT, goal=Goal.STOPPED)
    assert step(want, Have()) == steps.Idle()
    assert status_of(want, Have(), "node").state == types_pb2.INSTANCE_STATE_STOPPED


def test_a_stop_while_loading_needs_no_drain() -> None:
    want = replace(WANT, goal=Goal.STOPPED)
    assert step(want, LAUNCHED.told(heard(types_pb2.INSTANCE_STATE_LOADING), NOW)) == steps.Terminate(None)


def test_a_sleeper_wakes_when_it_should_run_and_rests_when_it_should_sleep() -> None:
    asleep = READY.told(heard(types_pb2.INSTANCE_STATE_SLEEPING), NOW)
    assert step(WANT, asleep) == steps.WakeUp()
    rests = asleep.fell_asleep(NOW).measured(Kept(5, 7), "", NOW).dozes()
    assert step(replace(WANT, goal=Goal.SLEEPING), rests) == steps.Idle(NOW + 20)


def test_a_worker_that_someone_else_drains_is_left_to_exit() -> None:
    draining = READY.told(heard(types_pb2.INSTANCE_STATE_DRAINING), NOW)
    assert step(WANT, draining) == steps.Idle(NOW + 20)


def test_a_crash_ends_what_is_left_of_the_worker_then_waits_then_restarts_on_the_same_gpus() -> None:
    exited = READY.exited("killed by SIGKILL")
    assert step(WANT, exited) == steps.Terminate(CRASH)
    waiting = exited.gone(CRASH, NOW, POLICY)
    assert step(WANT, waiting) == steps.Idle(NOW + 2)
    status = status_of(WANT, waiting, "node")
    assert status.state == types_pb2.INSTANCE_STATE_PENDING
    assert status.reason == "waits for restart 1 of 3 after: killed by SIGKILL"
    assert step(WANT, waiting, NOW + 2) == steps.CheckGpus((0, 1))
    held = waiting.looked_at("GPU 1 is not free: process 7 computes on it", NOW + 2)
    status = status_of(WANT, held, "node")
    assert (status.state, status.reason) == (types_pb2.INSTANCE_STATE_PENDING, held.occupied)
    assert step(WANT, waiting.looked_at("", NOW + 2), NOW + 2) == steps.Launch()
    assert waiting.launched(incarnation=2, spec_version=1, now=NOW + 2).restarts == 1


def test_the_wait_doubles_with_each_crash_in_a_row_up_to_thirty_seconds() -> None:
    policy = replace(POLICY, max_restarts=100)
    have, waits = LAUNCHED, []
    for _ in range(7):
        have = have.gone(CRASH, NOW, policy)
        waits.append(have.retry_at - NOW)
    assert waits == [2, 4, 8, 16, 30, 30, 30]


def test_crashes_in_a_row_end_in_failed_with_the_last_reason_and_free_gpus() -> None:
    have = LAUNCHED
    for _ in range(POLICY.max_restarts):
        have = crashed(have).launched(incarnation=2, spec_version=1, now=NOW)
    have = crashed(have)
    assert step(WANT, have) == steps.CheckGpus((0, 1))
    assert step(WANT, have.looked_at("", NOW)) == steps.Release()
    assert step(WANT, have.released(), NOW + 1e6) == steps.Idle()
    status = status_of(WANT, have, "node")
    assert status.state == types_pb2.INSTANCE_STATE_FAILED
    assert status.reason == "failed 4 times in a row; last: killed by SIGKILL"
    assert status.restarts == POLICY.max_restarts


def test_a_stable_run_makes_earlier_crashes_forgotten() -> None:
    twice = crashed(crashed(READY).launched(2, 1, NOW)).launched(3, 1, NOW)
    ready = twice.told(heard(types_pb2.INSTANCE_STATE_READY), NOW)
    assert crashed(ready, NOW + 59.9).failures == 3
    assert crashed(ready, NOW + 60).failures == 1


def test_a_load_failure_is_retried_less_often_than_a_crash_and_its_reason_travels() -> None:
    failed = LAUNCHED.told(heard(types_pb2.INSTANCE_STATE_FAILED, "no such file: weights"), NOW)
    assert step(WANT, failed) == steps.Terminate(CANNOT_LOAD)
    again = failed.gone(CANNOT_LOAD, NOW, POLICY).launched(2, 1, NOW + 2)
    given_up = again.gone(CANNOT_LOAD, NOW + 3, POLICY)
    assert given_up.gave_up
    assert status_of(WANT, given_up, "node").reason.endswith("no such file: weights")


def test_an_engine_that_dies_in_service_counts_as_a_crash_with_the_workers_reason() -> None:
    dead = READY.told(heard(types_pb2.INSTANCE_STATE_FAILED, "engine core died"), NOW)
    expected = steps.Terminate(Failure(FailureKind.CRASH, "engine core died"))
    assert step(WANT, dead) == expected
    assert step(WANT, dead.exited("exit status 1")) == expected


def test_failed_is_reported_only_when_the_agent_gives_up() -> None:
    failing = LAUNCHED.told(heard(types_pb2.INSTANCE_STATE_FAILED, "no memory"), NOW)
    status = status_of(WANT, failing, "node")
    assert (status.state, status.reason) == (
        types_pb2.INSTANCE_STATE_PENDING,
        "the worker failed: no memory",
    )


def test_failed_means_that_no_process_is_left_and_says_which_gpus_are_still_held() -> None:
    failure = Failure(FailureKind.LOAD, "no memory")
    policy = Policy(max_load_retries=0)
    given_up = LAUNCHED.gone(failure, NOW, policy)
    assert given_up.process is Process.NONE
    status = status_of(WANT, given_up, "node")
    assert (status.state, list(status.gpu_indexes)) == (types_pb2.INSTANCE_STATE_FAILED, [0, 1])
    assert list(status_of(WANT, given_up.released(), "node").gpu_indexes) == []


def test_a_failed_instance_starts_afresh_only_for_another_spec_placement_or_goal() -> None:
    assert not replace(WANT, generation=2, role=types_pb2.ROLE_BATCH).restarts_afresh(WANT)
    assert replace(WANT, spec_version=2).restarts_afresh(WANT)
    assert replace(WANT, gpus=(2, 3)).restarts_afresh(WANT)
    assert replace(WANT, goal=Goal.STOPPED).restarts_afresh(WANT)
    have = Have(gave_up=True, failures=9, retry_at=NOW + 30).wanted_afresh()
    assert step(WANT, have) == steps.Claim((0, 1))


def test_a_status_carries_what_the_worker_said() -> None:
    status = status_of(WANT, READY, "node-1")
    assert status.node_id == "node-1"
    assert status.state == types_pb2.INSTANCE_STATE_READY
    assert status.address == "127.0.0.1:5000"
    assert status.load.batch_size == 8
    assert list(status.gpu_indexes) == [0, 1]
    assert (status.generation, status.incarnation, status.spec_version) == (1, 1, 1)
