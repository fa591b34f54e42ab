"""How one worker's GPUs become another's and come back: asleep, seen to be free, left; taken, awake. Pure."""

from __future__ import annotations

import math

from chiron.v1 import types_pb2
from services.local_agent.condition import Failure, FailureKind, Have
from services.local_agent.desired import Want
from services.local_agent.steps import (
    Doze,
    Idle,
    MeasureSleeper,
    PutToSleep,
    Reclaim,
    SetRole,
    Step,
    Terminate,
    WakeUp,
)

CONFIRM_WITHIN_S = 30.0
"""A sleeper that keeps too much of its GPUs for so long is ended, so that they come free."""


def sleep_on(have: Have, now: float) -> Step:
    """The next step of a live worker that is to sleep."""
    asleep = have.heard.state == types_pb2.INSTANCE_STATE_SLEEPING
    # What a worker says of itself may be older than what it was told last: only its answer counts. One that
    # others' GPUs depend on, and that says that it is awake, is asked again.
    if not have.slept or (have.dozing and not asleep):
        return PutToSleep()
    if have.dozing:
        return MeasureSleeper(have.gpus or ()) if have.kept is None else Idle()
    if have.freed:
        return Doze()
    if have.occupied and now >= have.slept_at + CONFIRM_WITHIN_S:
        return Terminate(Failure(FailureKind.ASLEEP, f"asleep for {CONFIRM_WITHIN_S:g} s: {have.occupied}"))
    return Idle(have.look_at) if now < have.look_at else MeasureSleeper(have.gpus or ())


def wake_up(want: Want, have: Have) -> Step:
    """The next step of a live worker that sleeps and is to serve."""
    if have.dozing:
        if not have.blocked:
            return Reclaim(want.gpus)
        if have.heard.state == types_pb2.INSTANCE_STATE_READY:
            # Somebody else has woken it, on GPUs that others own.
            return PutToSleep()
        return Idle(have.blocked_until if have.blocked_until < math.inf else None)
    # It must not take what its new role turns away, not even for a moment.
    return SetRole(want.role) if want.role != have.heard.role else WakeUp()
