"""Decides the next step of one instance: (want, have, now) → step. Pure; the runner carries steps out.

Every step ends in one of the transitions of `Have`, after which `plan` is asked again: a repeated command or
a lost answer only means that it is asked once more.
"""

from __future__ import annotations

import math

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.condition import Failure, FailureKind, Have, Policy, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.limits import wanted_limits
from services.local_agent.steps import (
    CheckGpus,
    Claim,
    Command,
    Drain,
    Idle,
    Launch,
    Release,
    SetLimits,
    SetRole,
    Step,
    Terminate,
    WakeUp,
)
from services.local_agent.swapping import sleep_on, wake_up

_LOADING = frozenset(
    {
        types_pb2.INSTANCE_STATE_UNSPECIFIED,
        types_pb2.INSTANCE_STATE_PENDING,
        types_pb2.INSTANCE_STATE_LOADING,
    }
)
_DRAINABLE = frozenset({types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_DRAINING})


def plan(want: Want, have: Have, now: float, policy: Policy) -> Step:
    """The next step towards what is wanted.

    Args:
        want: the newest level.
        have: what is there.
        now: monotonic time, in seconds.
        policy: when to restart and when to give up.
    """
    if have.process is Process.NONE:
        return _without_process(want, have, now)
    if have.process is Process.EXITED:
        expected = have.leaving or want.goal is Goal.STOPPED
        return Terminate(None if expected else _failure(want, have, have.exit_reason))
    if have.leaving:
        return Terminate(None)
    other = want.spec_version not in (0, have.spec_version) or have.gpus != want.gpus
    if want.goal is Goal.STOPPED or other:
        drains = have.heard.state in _DRAINABLE and not want.at_once
        return Drain(want.drain_timeout_s) if drains else Terminate(None)
    if have.heard.state == types_pb2.INSTANCE_STATE_FAILED:
        return Terminate(_failure(want, have, have.heard.reason))
    if have.heard.state in _LOADING:
        limit = policy.load_timeout_s
        if now < have.started_at + limit:
            return Idle(have.started_at + limit)
        reason = f"not ready within {limit:g} s (load_timeout_s)"
        return Terminate(Failure(_kind(want, FailureKind.LOAD), reason))
    return _with_live_worker(want, have, now, policy)


def _failure(want: Want, have: Have, reason: str) -> Failure:
    said_so = have.heard.state == types_pb2.INSTANCE_STATE_FAILED
    kind = FailureKind.LOAD if said_so and have.ready_at is None else FailureKind.CRASH
    said = have.heard.reason if said_so else ""
    return Failure(_kind(want, kind), said or reason or "the worker failed for no stated reason")


def _kind(want: Want, kind: FailureKind) -> FailureKind:
    return FailureKind.ASLEEP if want.goal is Goal.SLEEPING else kind


def _without_process(want: Want, have: Have, now: float) -> Step:
    if want.goal is Goal.STOPPED or have.gave_up:
        return Idle() if have.gpus is None else _give_back(have.gpus, have, now)
    if have.gpus is not None and (have.gpus != want.gpus or have.dozing):
        return _give_back(have.gpus, have, now)
    if now < have.retry_at:
        return Idle(have.retry_at)
    if have.blocked and now < have.blocked_until:
        return Idle(have.blocked_until if have.blocked_until < math.inf else None)
    return Claim(want.gpus) if have.gpus is None else _when_clear(Launch(), have.gpus, have, now)


def _give_back(gpus: tuple[int, ...], have: Have, now: float) -> Step:
    # Who computes on the GPUs of a sleeper that has ended may be their owner.
    return Release() if have.dozing else _when_clear(Release(), gpus, have, now)


def _when_clear(step: Step, gpus: tuple[int, ...], have: Have, now: float) -> Step:
    """The processes of a worker are gone before the driver has let go of its GPUs."""
    if have.clear:
        return step
    return Idle(have.look_at) if now < have.look_at else CheckGpus(gpus)


def _with_live_worker(want: Want, have: Have, now: float, policy: Policy) -> Step:
    silent_at = have.heard_at + policy.silence_timeout_s
    if now >= silent_at:
        reason = f"no statistics for {policy.silence_timeout_s:g} s (silence_timeout_s)"
        return Terminate(Failure(_kind(want, FailureKind.CRASH), reason))
    step = _next(want, have, now)
    if isinstance(step, Idle):
        return Idle(silent_at if step.until is None else min(step.until, silent_at))
    if isinstance(step, Command) and now < have.control_retry_at:
        return Idle(min(have.control_retry_at, silent_at))
    return step


def as_wanted(want: Want, have: Have) -> bool:
    """Whether the live worker serves, and is to be told nothing."""
    serves = have.heard.state == types_pb2.INSTANCE_STATE_READY and want.goal is Goal.RUNNING
    return serves and not have.dozing and isinstance(_adjust(want, have), Idle)


def _next(want: Want, have: Have, now: float) -> Step:
    heard = have.heard
    if heard.state == types_pb2.INSTANCE_STATE_DRAINING:
        # Somebody else told it to go, and its exit will be noticed; or it was about to sleep and serves on.
        return Idle()
    if want.goal is Goal.SLEEPING:
        return sleep_on(have, now)
    if have.dozing or heard.state == types_pb2.INSTANCE_STATE_SLEEPING:
        step = wake_up(want, have)
        return _when_clear(step, want.gpus, have, now) if have.reclaimed and step == WakeUp() else step
    return _adjust(want, have)


def _adjust(want: Want, have: Have) -> Step:
    if want.role != have.heard.role:
        return SetRole(want.role)
    load = have.heard.load or cluster_pb2.InstanceLoad()
    limits = wanted_limits(want, have.proposed)
    batch_size = limits.batch_size if limits.batch_size != load.batch_size else 0
    budget = limits.step_token_budget if limits.step_token_budget != load.step_token_budget else 0
    return SetLimits(batch_size, budget) if batch_size or budget else Idle()
