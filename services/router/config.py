"""Configuration of the router: the `[router]` table."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from chiron.policy.custom import PolicyError
from chiron.policy.dispatch import UnknownDispatcherError, load_dispatcher


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What a router is told at start."""

    listen: str = "127.0.0.1:50051"
    """host:port of the InferenceService; port 0 takes any free one."""
    controller: str = "127.0.0.1:50050"
    """host:port of the global controller. The router keeps its last table while it is away."""
    router_id: str = ""
    """Name in the controller's status and the workers' logs; empty: host name and process id."""
    dispatcher: str = "least-expected-wait"
    """Policy that picks an instance: a built-in name or `module:Class`."""
    queue_limit: int = 1024
    """Most requests of one model and class that wait in this router; more are refused with
    RESOURCE_EXHAUSTED."""
    max_queue_s: float = 600.0
    """Longest wait of a request in this router, in seconds; its call's deadline and the `deadline_s` of its
    SLO may be shorter."""
    worker_queue: int = 2
    """Requests beyond the batch size that the router lets wait at one worker, so that a freed slot is
    refilled without a round trip."""
    max_attempts: int = 3
    """Most instances tried for one proxied request before its first token."""
    retry_pause_s: float = 1.0
    """Time after which an instance that refused a request may be tried again for it, in seconds, when no
    other one takes it."""
    ticket_ttl_s: float = 2.0
    """How long a ticket may stay unused and a reservation unconfirmed, in seconds."""
    reader_stall_s: float = 60.0
    """A proxied stream whose client accepts nothing for this long is ended, in seconds."""
    report_interval_s: float = 1.0
    """Time between demand reports to the controller, in seconds."""
    drain_timeout_s: float = 30.0
    """On SIGTERM, how long running requests may go on, in seconds."""

    def __post_init__(self) -> None:
        """Rejects what cannot work, naming the key."""
        for key in ("queue_limit", "worker_queue"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must be >= 0, not {getattr(self, key)}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: must be >= 1, not {self.max_attempts}")
        for key in ("max_queue_s", "retry_pause_s", "ticket_ttl_s", "reader_stall_s", "report_interval_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: must be > 0, not {getattr(self, key):g}")
        if not self.drain_timeout_s >= 0:
            raise ValueError(f"drain_timeout_s: must be >= 0, not {self.drain_timeout_s:g}")
        try:
            load_dispatcher(self.dispatcher)
        except (UnknownDispatcherError, PolicyError) as error:
            raise ValueError(f"dispatcher: {error}") from error

    @property
    def identity(self) -> str:
        """The router's id: as configured, or host name and process id."""
        return self.router_id or f"{socket.gethostname()}-{os.getpid()}"
