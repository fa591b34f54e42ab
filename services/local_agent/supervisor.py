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
    Drain,
    Idle,
    Launch,
    PutToSleep,
    Release,
    SetLimits,
    SetRole,
    Step,
    Terminate,
    WakeUp,
)

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
        return Terminate(None if expected else _failure(have, have.exit_reason))
    if have.leaving:
        return Terminate(None)
    other = want.spec_version not in (0, have.spec_version) or have.gpus != want.gpus
    if want.goal is Goal.STOPPED or other:
        drains = have.heard.state in _DRAINABLE and not want.at_once
        return Drain(want.drain_timeout_s) if drains else Terminate(None)
    if have.heard.state == types_pb2.INSTANCE_STATE_FAILED:
        return Terminate(_failure(have, have.heard.reason))
    if have.heard.state in _LOADING:
        limit = policy.load_timeout_s
        if now < have.started_at + limit:
            return Idle(have.started_at + limit)
        return Terminate(Failure(FailureKind.LOAD, f"not ready within {limit:g} s (load_timeout_s)"))
    return _with_live_worker(want, have, now, policy)


def _failure(have: Have, reason: str) -> Failure:
    said_so = have.heard.state == types_pb2.INSTANCE_STATE_FAILED
    kind = FailureKind.LOAD if said_so and have.ready_at is None else FailureKind.CRASH
    return Failure(
        kind, (have.heard.reason if said_so else "") or reason or "the worker failed for no stated reason"
    )


def _without_process(want: Want, have: Have, now: float) -> Step:
    if want.goal is Goal.STOPPED or have.gave_up:
        return Idle() if have.gpus is None else _when_clear(Release(), have.gpus, have, now)
    if have.gpus is not None and have.gpus != want.gpus:
        return _when_clear(Release(), have.gpus, have, now)
    if now < have.retry_at:
        return Idle(have.retry_at)
    if have.blocked and now < have.blocked_until:
        return Idle(have.blocked_until if have.blocked_until < math.inf else None)
    return Claim(want.gpus) if have.gpus is None else _when_clear(Launch(), have.gpus, have, now)


def _when_clear(step: Step, gpus: tuple[int, ...], have: Have, now: float) -> Step:
    """The processes of a worker are gone before the driver has let go of its GPUs."""
    if have.clear:
        return step
    return Idle(have.look_at) if now < have.look_at else CheckGpus(gpus)


def _with_live_worker(want: Want, have: Have, now: float, policy: Policy) -> Step:
    silent_at = have.heard_at + policy.silence_timeout_s
    if now >= silent_at:
        reason = f"no statistics for {policy.silence_timeout_s:g} s (silence_timeout_s)"
        return Terminate(Failure(FailureKind.CRASH, reason))
    step = command(want, have)
    if step is None:
        return Idle(silent_at)
    return Idle(min(have.control_retry_at, silent_at)) if now < have.control_retry_at else step


def command(want: Want, have: Have) -> Step | None:
    """What the live worker is to be told next; None: it is as wanted."""
    heard, state = have.heard, have.heard.state
    if state == types_pb2.INSTANCE_STATE_DRAINING:
        # Somebody else told it to go; its exit will be noticed.
        return None
    if state == types_pb2.INSTANCE_STATE_SLEEPING:
        return WakeUp() if want.goal is Goal.RUNNING else None
    if want.goal is Goal.SLEEPING:
        return PutToSleep()
    if want.role != heard.role:
        return SetRole(want.role)
    load = heard.load or cluster_pb2.InstanceLoad()
    limits = wanted_limits(want, have.proposed)
    batch_size = limits.batch_size if limits.batch_size != load.batch_size else 0
    budget = limits.step_token_budget if limits.step_token_budget != load.step_token_budget else 0
    return SetLimits(batch_size, budget) if batch_size or budget else None
