"""What an instance's predecessor leaves, as the state that its successor begins with. Pure."""

from __future__ import annotations

from dataclasses import replace

from chiron.v1 import types_pb2
from services.local_agent.adoption import Legacy
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Policy, Process
from services.local_agent.desired import Goal
from services.local_agent.memory import Tally

_CONTROLLER_FIRST_S = 5.0


def inherited(legacy: Legacy, last_words: str, now: float, policy: Policy) -> Have:
    """The state of an instance that an earlier agent has left.

    A worker that has been ready is taken to serve until it says otherwise. In place of one that is gone
    another is started, but not before the controller has had the time to say that it wants none.

    Args:
        legacy: what is left.
        last_words: the end of the worker's log, for one that is gone.
        now: monotonic time, in seconds.
        policy: when to restart and when to give up.
    """
    have = _with_failures(legacy.tally, now)
    if (worker := legacy.worker) is not None:
        have = have.claimed(worker.gpus).launched(worker.incarnation, worker.spec_version, now)
        if worker.address:
            heard = Heard(types_pb2.INSTANCE_STATE_READY, "", legacy.want.role, worker.address)
            have = have.told(heard, now)
        return replace(have.fell_asleep(now), freed=True).dozes() if worker.asleep else have
    waits = "waits for the controller's word"
    if (died := legacy.died) is not None:
        have = replace(have.launched(died.incarnation, died.spec_version, now), process=Process.NONE)
        reason = "it ended while no agent watched" + (f": {last_words}" if last_words else "")
        expected = legacy.want.goal is Goal.STOPPED
        kind = FailureKind.ASLEEP if legacy.want.goal is Goal.SLEEPING else FailureKind.CRASH
        have = have.gone(None if expected else Failure(kind, reason), now, policy)
        waits += f"; its worker is gone: {reason}"
    elif legacy.want.goal is Goal.SLEEPING and not have.gave_up:
        have = have.gone(Failure(FailureKind.ASLEEP, "no worker of it is left"), now, policy)
    return have.stopped_by(waits, now + _CONTROLLER_FIRST_S)


def tally_of(instance_id: str, have: Have) -> Tally:
    """What must be remembered of an instance's failures."""
    return Tally(
        instance_id=instance_id,
        incarnation=have.incarnation,
        failures=have.failures,
        failure_limit=have.failure_limit,
        last_failure=have.last_failure,
        gave_up=have.gave_up,
        restarts=have.restarts,
    )


def _with_failures(tally: Tally | None, now: float) -> Have:
    if tally is None:
        return Have()
    return Have(
        incarnation=tally.incarnation,
        failures=tally.failures,
        failure_limit=tally.failure_limit,
        last_failure=tally.last_failure,
        gave_up=tally.gave_up,
        restarts=tally.restarts,
        retry_at=now,
    )
