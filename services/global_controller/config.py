"""Configuration of the global controller."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from chiron.auth.settings import AuthSettings, TlsSettings, check_exposure
from chiron.rpc.controllers import check_addresses
from services.global_controller.autoscaler_config import AutoscalerConfig
from services.global_controller.store_config import StoreConfig, StoreKind

_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::", "[::]"})


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Keys of the table `[controller]`."""

    listen: str = "127.0.0.1:50050"
    """host:port to listen on, for operators, agents and routers; port 0 takes any free one."""
    advertise: str = ""
    """host:port at which agents, routers and operators reach this controller; the others tell them while it
    leads. Empty: what it listens on."""
    report_interval_ms: int = 1000
    """Time between the reports of an agent, in milliseconds; told to agents when they connect."""
    liveness_timeout_s: float = 5.0
    """Silence after which a node counts as dead and its instances are placed elsewhere, in seconds. For as
    long after it has begun to lead, or until all nodes on record have reported, the controller stops and
    replaces nothing, so that nodes can join again first."""
    decisions_kept: int = 1000
    """How many decisions are kept for ListDecisions; the oldest go first."""

    presumed_load_time_s: float = 30.0
    """Time from an instance's placement to its first request that autoscalers reckon with while none of the
    model has been measured, in seconds."""
    presumed_wake_time_s: float = 5.0
    """The same for waking an instance that sleeps, in seconds."""
    ticket_key_period_s: float = 43_200.0
    """How long one key signs tickets, in seconds. It is accepted for as long again, and
    known to all for as long before."""
    roll_hold_s: float = 10.0
    """Time for which a new instance must stay ready before a roll goes on, in seconds, where the model's own
    `roll.hold_s` says nothing."""
    drain_notice_s: float = 2.0
    """Time for which routers know that an instance will stop before its node is told, in seconds: what they
    have sent there finds it open. As long as a ticket may stay unused."""
    autoscaler: AutoscalerConfig = field(default_factory=AutoscalerConfig)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    store: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        """Refuses values that cannot work together."""
        if self.advertise:
            check_addresses("advertise", (self.advertise,))
        elif self.store.kind is StoreKind.ETCD and self.listen.rpartition(":")[0] in _ANY_ADDRESS:
            raise ValueError(f"advertise: needed with listen = {self.listen!r}, which nobody else can dial")
        if self.report_interval_ms < 10:
            raise ValueError(f"report_interval_ms: must be >= 10, not {self.report_interval_ms}")
        if self.liveness_timeout_s * 1000 < 2 * self.report_interval_ms:
            raise ValueError(
                f"liveness_timeout_s: must be at least two report intervals "
                f"({self.report_interval_ms * 2 / 1000:g} s), not {self.liveness_timeout_s:g}"
            )
        for key in ("presumed_load_time_s", "presumed_wake_time_s", "ticket_key_period_s"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be a number above 0, not {getattr(self, key):g}")
        for key in ("roll_hold_s", "drain_notice_s"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be a number >= 0, not {getattr(self, key):g}")
        check_exposure(self.listen, self.auth, self.tls)
        if self.decisions_kept < 1:
            raise ValueError(f"decisions_kept: must be >= 1, not {self.decisions_kept}")
