"""The worker's configuration, table `[worker]`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from chiron.auth.settings import AuthSettings, TlsSettings, check_exposure
from chiron.policy.preemption import HAND_BACK_S

LONGEST_WAIT_S = 3600.0


class RoleName(enum.Enum):
    """Which request classes an instance takes."""

    INTERACTIVE = "interactive"
    MIXED = "mixed"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class PreemptionSettings:
    """How batch work gives way to interactive work where both run."""

    enabled: bool = True
    """Preempt batch requests for an interactive one that finds no slot or no KV cache."""
    max_preemptions: int = 3
    """A batch request that has been preempted this often, here or elsewhere, is spared."""
    min_progress_tokens: int = 16
    """A batch request with fewer output tokens since it got its slot is spared."""
    deadline_resolution_s: float = 60.0
    """Deadlines within the same span of this many seconds count as equal; the least progress lost decides."""
    hand_back_s: float = HAND_BACK_S
    """Time after which a batch request that waits for its slot goes back to its router, in seconds; at most
    an hour."""

    def __post_init__(self) -> None:
        """Raises ValueError that names the key."""
        for name in ("max_preemptions", "min_progress_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, not {getattr(self, name)}")
        if not self.deadline_resolution_s > 0:
            raise ValueError(f"deadline_resolution_s: must be above 0, not {self.deadline_resolution_s:g}")
        if not 0 < self.hand_back_s <= LONGEST_WAIT_S:
            raise ValueError(
                f"hand_back_s: must be above 0 and at most {LONGEST_WAIT_S:g}, not {self.hand_back_s:g}"
            )


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker. The local agent passes these; nobody writes them by hand."""

    instance_id: str
    """Id of the instance that this worker serves."""
    incarnation: int
    """Increases with each start of the instance; at least 1."""
    spec_file: Path
    """The model's spec: a chiron.v1.ModelSpec as protobuf JSON."""
    socket: Path
    """Unix socket of the control interface; created with mode 0600."""
    spec_version: int = 0
    """Version of the spec, for logs and traces."""
    role: RoleName = RoleName.MIXED
    """Role to start with."""
    listen: str = "127.0.0.1:0"
    """host:port of the inference interface; port 0: any free one."""
    advertise_host: str = ""
    """Host at which routers and clients reach the worker, at the same port; empty: that of `listen`."""
    max_waiting: int = 256
    """Requests beyond the batch size that are taken in to wait; further ones get RETRY_ELSEWHERE. Where batch
    work gives way, what it holds takes no place from an interactive request."""
    require_tickets: bool = True
    """Refuse requests without a ticket that a router signed. False is for a worker that is used alone,
    without a cluster: whoever reaches its port may use it."""
    messages_per_s: float = 1250.0
    """Messages that all streams together are held to: with few streams each token leaves by itself,
    with more of them several travel in one message."""
    longest_hold_ms: float = 100.0
    """Longest time that a token waits to travel with others, in milliseconds; at most half the ITL SLO, and
    the first token never waits. 0: each leaves by itself."""
    preemption: PreemptionSettings = field(default_factory=PreemptionSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    reader_stall_s: float = 60.0
    """A client that takes nothing for this long, in seconds, while output waits for it loses its stream."""
    drain_timeout_s: float = 30.0
    """Time that SIGTERM leaves to running requests, in seconds."""

    def __post_init__(self) -> None:
        """Raises ValueError that names the key."""
        if not self.require_tickets:
            check_exposure(self.listen, self.auth, self.tls)
        if not self.instance_id:
            raise ValueError("instance_id: must not be empty")
        if self.incarnation < 1:
            raise ValueError(f"incarnation: must be at least 1, not {self.incarnation}")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting: must not be negative, not {self.max_waiting}")
        if not self.messages_per_s > 0:
            raise ValueError(f"messages_per_s: must be above 0, not {self.messages_per_s:g}")
        if not self.longest_hold_ms >= 0:
            raise ValueError(f"longest_hold_ms: must not be negative, not {self.longest_hold_ms:g}")
        if self.reader_stall_s <= 0:
            raise ValueError(f"reader_stall_s: must be above 0, not {self.reader_stall_s:g}")
        if self.drain_timeout_s < 0:
            raise ValueError(f"drain_timeout_s: must not be negative, not {self.drain_timeout_s:g}")
