"""What the agent knows of one instance, and how each event changes it. Pure.

Times are monotonic, in seconds, and passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.limits import AS_IT_IS, LimitPair

_BACKOFF_MAX_S = 30.0
_CONTROL_RETRY_S = 5.0
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """When to restart and when to give up; the fields are the config keys of the same names."""

    max_restarts: int = 5
    max_load_retries: int = 1
    restart_backoff_s: float = 1.0
    stable_after_s: float = 60.0
    load_timeout_s: float = 1800.0
    silence_timeout_s: float = 60.0

    def retries(self, kind: FailureKind) -> int:
        """Failures in a row after which another worker is started."""
        if kind is FailureKind.ASLEEP:
            return 0
        return self.max_load_retries if kind is FailureKind.LOAD else self.max_restarts

    def backoff_s(self, failures: int) -> float:
        """Wait before the restart that follows the given number of failures in a row (>= 1), in seconds."""
        return min(_BACKOFF_MAX_S, self.restart_backoff_s * 2.0 ** min(failures - 1, 30))


class FailureKind(Enum):
    """What went wrong, because it decides how often to try again."""

    CRASH = "crash"
    LOAD = "load"
    """The engine said that it cannot load."""
    ASLEEP = "asleep"
    """It was to sleep: nobody waits for another worker."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker ended without being asked to."""

    kind: FailureKind
    reason: str


class Process(Enum):
    """The worker process as the agent knows it."""

    NONE = "none"
    """Nothing of it lives; its GPUs are free."""
    ALIVE = "alive"
    EXITED = "exited"
    """The worker is gone, but its children may still hold the GPUs."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the worker said last. Freshness: `statistics_interval_ms`, at once on a change of state."""

    state: types_pb2.InstanceState.ValueType = types_pb2.INSTANCE_STATE_UNSPECIFIED
    reason: str = ""
    role: types_pb2.Role.ValueType = types_pb2.ROLE_UNSPECIFIED
    address: str = ""
    load: cluster_pb2.InstanceLoad | None = None
    load_at: float = 0.0
    """When the worker told `load`: monotonic time, in seconds."""

    @classmethod
    def of(cls, message: worker_pb2.WatchStatisticsResponse, now: float) -> Self:
        """What a worker's statistics say; a worker that has failed tells no load."""
        load = message.load if message.HasField("load") else None
        return cls(message.state, message.reason, message.role, message.address, load, now)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a worker keeps in its sleep, in bytes."""

    gpu_bytes: int
    """Of the GPU of which it keeps most."""
    host_bytes: int


@dataclass(frozen=True, slots=True)
class Have:
    """What is there. Times are monotonic, in seconds."""

    process: Process = Process.NONE
    incarnation: int = 0
    spec_version: int = 0
    gpus: tuple[int, ...] | None = None
    """GPUs held in the ledger; None: no claim."""
    clear: bool = False
    """Nobody computed on the GPUs when they were looked at last, and no worker has run on them since."""
    occupied: str = ""
    """Who did, when anybody did."""
    look_at: float = 0.0
    """When to look again."""
    blocked: str = ""
    """Why it cannot be started now; cleared when something is released."""
    blocked_until: float = math.inf
    """When to try again even if nothing is."""
    heard: Heard = Heard()
    heard_at: float = 0.0
    started_at: float = 0.0
    ready_at: float | None = None
    """When this incarnation became ready first."""
    exit_reason: str = ""
    leaving: bool = False
    """The worker has been told to go: it cannot return to service."""
    failures: int = 0
    """In a row."""
    failure_limit: int = 0
    last_failure: str = ""
    """Why the last worker failed, until the next one is started."""
    gave_up: bool = False
    retry_at: float = 0.0
    restarts: int = 0
    control_retry_at: float = 0.0
    """A worker that refused a command is not asked again before."""
    proposed: LimitPair = AS_IT_IS
    """Limits that the local autoscaler wants of the worker that lives."""
    complaint: str = ""
    """Which command it refused and why, until it carries one out or something else is wanted."""
    slept: bool = False
    """The worker has answered that it sleeps, and has not been told to wake since."""
    slept_at: float = 0.0
    freed: bool = False
    """It has been seen to keep no more of its GPUs than it may."""
    kept: Kept | None = None
    """What it keeps; None: not measured yet."""
    dozing: bool = False
    """It sleeps, and others may own its GPUs in the ledger."""
    reclaimed: bool = False
    """It sleeps, and has its GPUs again, on which others may still compute."""

    def claimed(self, gpus: tuple[int, ...]) -> Have:
        """The ledger granted the GPUs. Who computes on them is to be seen."""
        return replace(self, gpus=gpus, clear=False, occupied="", look_at=0.0).unblocked()

    def looked_at(self, occupied: str, now: float) -> Have:
        """Who computes on the GPUs; empty: nobody."""
        return replace(self, clear=not occupied, occupied=occupied, look_at=now + _LOOK_AGAIN_S)

    def released(self) -> Have:
        """The GPUs went back to the ledger."""
        return replace(self, gpus=None, clear=False, occupied="", dozing=False)

    def stopped_by(self, reason: str, until: float = math.inf) -> Have:
        """It cannot be started before something is released, or before a monotonic time, in seconds."""
        return replace(self, blocked=reason, blocked_until=until)

    def unblocked(self) -> Have:
        """Something was released: try again."""
        return replace(self, blocked="", blocked_until=math.inf)

    def wanted_afresh(self) -> Have:
        """The controller wants another worker: earlier failures count no more."""
        return replace(
            self, failures=0, last_failure="", gave_up=False, retry_at=0.0, control_retry_at=0.0
        ).unblocked()

    def launched(self, incarnation: int, spec_version: int, now: float) -> Have:
        """A worker process was started."""
        return replace(
            self,
            process=Process.ALIVE,
            incarnation=incarnation,
            spec_version=spec_version,
            heard=Heard(),
            heard_at=now,
            started_at=now,
            ready_at=None,
            exit_reason="",
            leaving=False,
            restarts=self.restarts + (1 if self.last_failure else 0),
            last_failure="",
            control_retry_at=0.0,
            complaint="",
            proposed=AS_IT_IS,
            slept=False,
            freed=False,
            kept=None,
            reclaimed=False,
        ).unblocked()

    def told(self, heard: Heard, now: float) -> Have:
        """The worker sent statistics."""
        first_ready = self.ready_at is None and heard.state == types_pb2.INSTANCE_STATE_READY
        return replace(self, heard=heard, heard_at=now, ready_at=now if first_ready else self.ready_at)

    def proposing(self, limits: LimitPair) -> Have:
        """The local autoscaler wants these limits."""
        return replace(self, proposed=limits)

    def fell_asleep(self, now: float) -> Have:
        """The worker answers that it sleeps. What it keeps of its GPUs is to be seen."""
        heard = replace(self.heard, state=types_pb2.INSTANCE_STATE_SLEEPING)
        seen = replace(self, heard=heard, heard_at=now, slept=True, slept_at=now, freed=False, kept=None)
        return replace(seen, occupied="", look_at=0.0, reclaimed=False)

    def measured(self, kept: Kept, too_much: str, now: float) -> Have:
        """What the sleeper keeps; `too_much`: why others cannot have its GPUs yet, empty: they can."""
        return replace(self, kept=kept, freed=not too_much, occupied=too_much, look_at=now + _LOOK_AGAIN_S)

    def dozes(self) -> Have:
        """Its GPUs are others' to own."""
        return replace(self, dozing=True, occupied="").unblocked()

    def reclaims(self) -> Have:
        """The ledger granted a sleeper its GPUs again. Who computes on them is to be seen."""
        have = replace(self, dozing=False, reclaimed=True, clear=False, occupied="", look_at=0.0)
        return replace(have, slept=False, freed=False, kept=None).unblocked()

    def waking(self, now: float) -> Have:
        """The worker is told to wake: a start like any other, until it is ready again."""
        heard = replace(self.heard, state=types_pb2.INSTANCE_STATE_LOADING)
        seen = replace(self, heard=heard, heard_at=now, started_at=now, ready_at=None)
        return replace(seen, slept=False, freed=False, kept=None, reclaimed=False)

    def drained(self) -> Have:
        """The worker refuses requests and has none left; it is on its way out."""
        return replace(self, leaving=True)

    def refused(self, reason: str, now: float) -> Have:
        """The worker did not carry out a command."""
        return replace(self, control_retry_at=now + _CONTROL_RETRY_S, complaint=reason)

    def content(self) -> Have:
        """The worker carried a command out, or is asked for something else."""
        return replace(self, complaint="")

    def exited(self, reason: str) -> Have:
        """The worker process is gone."""
        return replace(self, process=Process.EXITED, exit_reason=reason)

    def gone(self, failure: Failure | None, now: float, policy: Policy) -> Have:
        """Every process of the worker is gone. A failure is counted; too many in a row and it is given up."""
        have = replace(
            self,
            process=Process.NONE,
            heard=Heard(),
            leaving=False,
            exit_reason="",
            clear=False,
            occupied="",
            look_at=0.0,
            slept=False,
            freed=False,
            kept=None,
            reclaimed=False,
        )
        if failure is None:
            return have
        stable = self.ready_at is not None and now - self.ready_at >= policy.stable_after_s
        failures = 1 if stable else self.failures + 1
        limit = policy.retries(failure.kind)
        return replace(
            have,
            failures=failures,
            failure_limit=limit,
            last_failure=failure.reason,
            gave_up=failures > limit,
            retry_at=now + policy.backoff_s(failures),
        )
