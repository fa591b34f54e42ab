"""How a GPU passes from one instance to another: the order of the steps, and what is reported meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Kept, Policy
from services.local_agent.desired import Goal, Want
from services.local_agent.ledger import GpuLedger, Sleeper
from services.local_agent.status import status_of
from services.local_agent.supervisor import plan
from services.local_agent.swapping import CONFIRM_WITHIN_S

POLICY = Policy(max_restarts=3, load_timeout_s=100.0, silence_timeout_s=1000.0)
RUN = Want("a", Goal.RUNNING, cluster_pb2.ModelSpec(name="m", engine="sim"), gpus=(0,))
SLEEP = replace(RUN, goal=Goal.SLEEPING)
STOP = replace(RUN, goal=Goal.STOPPED)
LOADING, READY = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY
DRAINING, SLEEPING = types_pb2.INSTANCE_STATE_DRAINING, types_pb2.INSTANCE_STATE_SLEEPING
FAILED = types_pb2.INSTANCE_STATE_FAILED
NOW = 1000.0
KEPT = Kept(gpu_bytes=5, host_bytes=7)


def heard(state: types_pb2.InstanceState.ValueType) -> Heard:
    load = cluster_pb2.InstanceLoad(batch_size=8, step_token_budget=512)
    return Heard(state, "", types_pb2.ROLE_MIXED, "127.0.0.1:5000", load)


SERVING = Have().claimed((0,)).launched(1, 0, NOW).told(heard(READY), NOW)
ASLEEP = SERVING.fell_asleep(NOW)
DOZING = ASLEEP.measured(KEPT, "", NOW).dozes()
CLAIMED = DOZING.reclaims()


def step(want: Want, have: Have, now: float = NOW) -> steps.Step:
    return plan(want, have, now, POLICY)


def shown(want: Want, have: Have) -> tuple[types_pb2.InstanceState.ValueType, str]:
    status = status_of(want, have, "node")
    return status.state, status.reason


def test_others_get_the_gpu_of_a_sleeper_only_once_it_is_seen_to_be_free() -> None:
    assert step(SLEEP, SERVING) == steps.PutToSleep()
    assert step(SLEEP, ASLEEP) == steps.MeasureSleeper((0,))
    assert shown(SLEEP, ASLEEP) == (DRAINING, "")
    full = ASLEEP.measured(KEPT, "GPU 0 is full", NOW)
    assert step(SLEEP, full) == steps.Idle(NOW + 1)
    assert step(SLEEP, full, NOW + 1) == steps.MeasureSleeper((0,))
    assert shown(SLEEP, full) == (DRAINING, "GPU 0 is full")
    free = full.measured(KEPT, "", NOW + 1)
    assert step(SLEEP, free) == steps.Doze()
    assert shown(SLEEP, free)[0] == DRAINING
    assert isinstance(step(SLEEP, free.dozes()), steps.Idle)
    assert shown(SLEEP, free.dozes()) == (SLEEPING, "")
    assert status_of(SLEEP, free.dozes(), "node").kept == cluster_pb2.Kept(gpu_bytes=5, host_bytes=7)


def test_a_sleeper_that_keeps_too_much_for_long_is_ended_and_not_started_again() -> None:
    full = ASLEEP.measured(KEPT, "GPU 0 is full", NOW)
    reason = f"asleep for {CONFIRM_WITHIN_S:g} s: GPU 0 is full"
    failure = Failure(FailureKind.ASLEEP, reason)
    assert step(SLEEP, full, NOW + CONFIRM_WITHIN_S) == steps.Terminate(failure)
    gone = full.gone(failure, NOW, POLICY)
    assert shown(SLEEP, gone) == (FAILED, f"failed once; last: {reason}")
    assert step(SLEEP, gone) == steps.CheckGpus((0,))
    assert step(SLEEP, gone.looked_at("", NOW)) == steps.Release()


def test_a_wake_waits_for_the_gpu_then_for_those_who_compute_on_it() -> None:
    assert step(RUN, DOZING) == steps.Reclaim((0,))
    waits = DOZING.stopped_by("GPU 0 is still held by b")
    assert isinstance(step(RUN, waits), steps.Idle)
    assert shown(RUN, waits) == (SLEEPING, "GPU 0 is still held by b")
    assert step(RUN, waits.unblocked()) == steps.Reclaim((0,))
    assert step(RUN, CLAIMED) == steps.CheckGpus((0,))
    assert step(RUN, CLAIMED.looked_at("GPU 0 is not free", NOW)) == steps.Idle(NOW + 1)
    assert shown(RUN, CLAIMED.looked_at("GPU 0 is not free", NOW)) == (LOADING, "GPU 0 is not free")
    assert step(RUN, CLAIMED.looked_at("", NOW)) == steps.WakeUp()


def test_a_sleeper_has_its_new_role_before_it_wakes() -> None:
    want = replace(RUN, role=types_pb2.ROLE_BATCH)
    assert step(want, CLAIMED) == steps.SetRole(types_pb2.ROLE_BATCH)


def test_a_waking_worker_loads_until_the_load_timeout_and_its_crash_is_a_failed_start() -> None:
    waking = CLAIMED.looked_at("", NOW).waking(NOW + 50)
    assert shown(RUN, waking) == (LOADING, "")
    assert step(RUN, waking, NOW + 149) == steps.Idle(NOW + 150)
    assert isinstance(step(RUN, waking, NOW + 150), steps.Terminate)
    assert waking.ready_at is None, "a crash now is one of a start"
    failure = Failure(FailureKind.CRASH, "killed by SIGKILL")
    crashed = waking.exited("killed by SIGKILL").gone(failure, NOW + 60, POLICY)
    assert (crashed.failures, crashed.gave_up) == (1, False)
    assert waking.told(heard(READY), NOW + 60).ready_at == NOW + 60


def test_the_workers_word_is_not_enough_for_its_gpus_to_be_free() -> None:
    # It may have been told to wake since it said so.
    says = SERVING.told(heard(SLEEPING), NOW)
    assert step(SLEEP, says) == steps.PutToSleep()
    assert shown(SLEEP, says) == (DRAINING, "")
    assert step(SLEEP, CLAIMED.waking(NOW).told(heard(SLEEPING), NOW)) == steps.PutToSleep()
    assert step(SLEEP, CLAIMED) == steps.PutToSleep(), "it has its GPUs again, and may have been woken"


def test_one_that_somebody_else_has_woken_on_the_gpus_of_others_is_put_to_sleep_again() -> None:
    awake = DOZING.told(heard(READY), NOW)
    assert step(SLEEP, awake) == steps.PutToSleep()
    assert step(RUN, awake) == steps.Reclaim((0,))
    assert step(RUN, awake.stopped_by("GPU 0 is still held by b")) == steps.PutToSleep()


def test_a_stopped_sleeper_needs_no_drain_and_no_look_at_gpus_that_others_own() -> None:
    assert step(STOP, DOZING) == steps.Terminate(None)
    assert shown(STOP, DOZING)[0] == SLEEPING, "others may own its GPUs until it is gone"
    gone = DOZING.gone(None, NOW, POLICY)
    assert step(STOP, gone) == steps.Release()
    assert shown(STOP, gone.released())[0] == types_pb2.INSTANCE_STATE_STOPPED


@pytest.mark.parametrize("have", [DOZING, ASLEEP, SERVING])
def test_a_worker_that_ends_when_it_is_to_sleep_is_replaced_only_once_it_is_to_run(have: Have) -> None:
    exited = have.exited("killed by SIGKILL")
    failure = Failure(FailureKind.ASLEEP, "killed by SIGKILL")
    assert step(SLEEP, exited) == steps.Terminate(failure)
    gone = exited.gone(failure, NOW, POLICY)
    assert shown(SLEEP, gone) == (FAILED, "failed once; last: killed by SIGKILL")
    released = gone.released()
    assert step(SLEEP, released) == steps.Idle()
    assert SLEEP.restarts_afresh(RUN)
    assert step(RUN, released.wanted_afresh()) == steps.Claim((0,))


def test_a_silent_sleeper_is_ended_and_not_started_again() -> None:
    found = step(SLEEP, DOZING, NOW + 1000)
    assert isinstance(found, steps.Terminate)
    assert found.failure is not None
    assert found.failure.kind is FailureKind.ASLEEP


def test_the_ledger_lists_sleepers_beside_owners() -> None:
    ledger, sleeper = GpuLedger(), Sleeper((0, 1), session=7, residual_bytes=9)
    assert not ledger.claim("a", (0, 1))
    ledger.doze("a", sleeper)
    assert not ledger.claim("b", (1, 2))
    assert ledger.sleepers((1,)) == ledger.sleepers((0, 5)) == {"a": sleeper}
    assert ledger.sleepers((2,)) == {}
    assert ledger.claim("a", (0, 1)) == {1: "b"}
    assert ledger.sleepers((1,)) == {"a": sleeper}, "nothing was taken"
    ledger.release("b")
    assert not ledger.claim("a", (0, 1))
    assert ledger.sleepers((1,)) == {}, "it owns them"
