"""Configuration of the router: the `[router]` table."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from chiron.auth.settings import AuthSettings, TlsSettings, check_exposure
from chiron.policy.custom import PolicyError
from chiron.policy.disciplines import UnknownDisciplineError, load_discipline
from chiron.policy.dispatch import UnknownDispatcherError, load_dispatcher
from chiron.rpc.controllers import check_addresses
from services.router.batch.settings import BatchSettings
from services.router.health import EjectionSettings
from services.router.http.settings import HttpSettings
from services.router.queue import STARVATION_S
from services.router.recording.settings import RecordingSettings


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What a router is told at start."""

    listen: str = "127.0.0.1:50051"
    """host:port of the InferenceService; port 0 takes any free one."""
    controller: tuple[str, ...] = ("127.0.0.1:50050",)
    """host:port of the global controller; of each one where several may lead. The router keeps its last table
    while none is there."""
    router_id: str = ""
    """Name in the controller's status and the workers' logs; empty: host name and process id."""
    dispatcher: str = "least-expected-wait"
    """Policy that picks an instance: a built-in name or `module:Class`."""
    prefix_affinity: bool = True
    """Whether a request goes where the beginning of its prompt is cached, among instances that are loaded
    about alike."""
    prefix_index: int = 65_536
    """Most beginnings of prompts that are remembered of each model, 130 to 350 bytes each (8 to 22 MiB); a
    prompt has up to 64 of them. The least recently used are forgotten first."""
    queue_limit: int = 1024
    """Most requests of one model and class that wait in this router; more are refused with
    RESOURCE_EXHAUSTED, but of tenants that have less than their share of it in the queue."""
    discipline: str = "edf"
    """Who of those that wait with the same class, priority and, if interactive, tenant goes next: `edf`
    (earliest deadline: the first token's for interactive requests, the result's for batch ones), `fcfs`
    (first come), `mlfq` (fewest output tokens so far)."""
    starvation_s: float = STARVATION_S
    """An interactive request that has waited for this long, in seconds, goes before all of the same tenant
    and priority that have not."""
    refuse_if_late: bool = False
    """Whether a request that would wait in this router for longer than its SLO allows is refused at once with
    SLO_OUT_OF_REACH and the estimate, where neither the request nor its model's `slo_defaults` say."""
    max_queue_s: float = 600.0
    """Longest wait of a request in this router, in seconds; its call's deadline and the `deadline_s` of its
    SLO may be shorter."""
    worker_queue: int = 2
    """Requests beyond the batch size that the router lets wait at one worker, so that a freed slot is
    refilled without a round trip."""
    max_attempts: int = 3
    """Most instances tried in a row for one proxied request without a new token."""
    max_resumes: int = 16
    """How often a proxied stream that broke after its first token goes on at another instance; 0: it ends."""
    abandoned_per_s: float = 200.0
    """Most requests a second that all callers together may open for nothing: cancelled within a second, or
    ticket not used; two and a half seconds' worth may come at once. Beyond it, those who abandon more than
    their share (by tenant, by host without authentication; then by connection) are turned away with
    RESOURCE_EXHAUSTED. 0: no limit."""
    retry_pause_s: float = 1.0
    """Time after which an instance that refused a request may be tried again for it, in seconds, when no
    other one takes it."""
    retry_share: float = 0.1
    """Most retries after failures, as a share of the requests. A refusal by a full instance is no failure."""
    retry_floor_per_s: float = 10.0
    """Retries a second that are allowed however few the requests; ten seconds' worth at once."""
    eject_failures: int = 3
    """Failures in a row after which an instance gets nothing for a while."""
    eject_s: float = 1.0
    """Length of an instance's first ejection, in seconds; each further one is twice as long. Then one request
    is sent on trial."""
    eject_longest_s: float = 30.0
    """Longest ejection, in seconds; an instance that was trusted for as long begins with the first again."""
    eject_silence_s: float = 2.0
    """An instance whose load reports stay away for this long, beyond the interval that it promises, is
    ejected; what waits there for its first token is tried elsewhere. In seconds."""
    eject_panic_share: float = 0.5
    """Where more than this share of the instances that a request could go to is ejected, all of them are
    used."""
    ticket_ttl_s: float = 2.0
    """How long a ticket may stay unused and a reservation unconfirmed, in seconds."""
    reader_stall_s: float = 60.0
    """A proxied stream whose client accepts nothing for this long is ended, in seconds."""
    table_file: Path | None = None
    """File in which the routing table and the ticket keys are kept (mode 0600), for a restart while no
    controller can be reached. One router per file; empty: not kept."""
    report_interval_s: float = 1.0
    """Time between demand reports to the controller, in seconds."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    drain_timeout_s: float = 30.0
    """On SIGTERM, how long running requests may go on, in seconds."""

    def __post_init__(self) -> None:
        """Rejects what cannot work, naming the key."""
        check_addresses("controller", self.controller)
        for key in ("queue_limit", "worker_queue", "max_resumes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must be >= 0, not {getattr(self, key)}")
        for key in ("max_attempts", "eject_failures", "prefix_index"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be >= 1, not {getattr(self, key)}")
        for key in ("retry_share", "eject_panic_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: must be 0 to 1, not {getattr(self, key):g}")
        for key in ("retry_floor_per_s", "abandoned_per_s"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}: must be >= 0, not {getattr(self, key):g}")
        for key in (
            "max_queue_s",
            "starvation_s",
            "retry_pause_s",
            "eject_s",
            "eject_silence_s",
            "ticket_ttl_s",
            "reader_stall_s",
            "report_interval_s",
        ):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: must be > 0, not {getattr(self, key):g}")
        if not self.eject_longest_s >= self.eject_s:
            what = f"must be >= eject_s ({self.eject_s:g}), not {self.eject_longest_s:g}"
            raise ValueError(f"eject_longest_s: {what}")
        if not self.drain_timeout_s >= 0:
            raise ValueError(f"drain_timeout_s: must be >= 0, not {self.drain_timeout_s:g}")
        check_exposure(self.listen, self.auth, self.tls)
        if self.http.listen:
            check_exposure(self.http.listen, self.auth, self.tls, key="http.listen")
        try:
            load_dispatcher(self.dispatcher)
        except (UnknownDispatcherError, PolicyError) as error:
            raise ValueError(f"dispatcher: {error}") from error
        try:
            load_discipline(self.discipline)
        except UnknownDisciplineError as error:
            raise ValueError(f"discipline: {error}") from error

    @property
    def ejection(self) -> EjectionSettings:
        """The figures by which instances are ejected."""
        return EjectionSettings(
            failures=self.eject_failures,
            first_s=self.eject_s,
            longest_s=self.eject_longest_s,
            silence_s=self.eject_silence_s,
            full_pause_s=self.retry_pause_s,
            panic_share=self.eject_panic_share,
        )

    @property
    def identity(self) -> str:
        """The router's id: as configured, or host name and process id."""
        return self.router_id or f"{socket.gethostname()}-{os.getpid()}"
