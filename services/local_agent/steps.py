"""The steps that the supervisor decides on and the runner carries out."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.v1 import types_pb2
from services.local_agent.condition import Failure


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until an event, or until the monotonic time when one is given."""

    until: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Take the GPUs in the ledger."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckGpus:
    """See whether anybody still computes on the GPUs."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give the GPUs back."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a worker."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let running requests finish, then stop."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Terminate:
    """End every process of the worker."""

    failure: Failure | None


@dataclass(frozen=True, slots=True)
class SetRole:
    """Change the role of the live worker."""

    role: types_pb2.Role.ValueType


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Change batch size and step-token budget of the live worker; 0 leaves one as it is."""

    batch_size: int
    step_token_budget: int


@dataclass(frozen=True, slots=True)
class PutToSleep:
    """Let running requests finish, then take the weights off the GPU."""


@dataclass(frozen=True, slots=True)
class MeasureSleeper:
    """See what a sleeper keeps of its GPUs and of host memory."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Doze:
    """Leave a sleeper's GPUs to others in the ledger."""


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Take a sleeper's GPUs again in the ledger."""

    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WakeUp:
    """Bring the weights back."""


Command = SetRole | SetLimits | PutToSleep | WakeUp
Swap = MeasureSleeper | Doze | Reclaim
Step = Idle | Claim | CheckGpus | Release | Launch | Drain | Terminate | Swap | Command
