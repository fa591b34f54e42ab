"""Keys of the `[agent]` table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from chiron.auth.settings import AuthSettings, TlsSettings
from chiron.rpc.controllers import check_addresses
from services.local_agent.autoscaling import check_name

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PORTS = re.compile(r"(\d+)(?:-(\d+))?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::", "[::]"})


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Configuration of one node's local agent."""

    controller: tuple[str, ...] = ("127.0.0.1:50050",)
    """host:port of the global controller, which the agent dials; of each one where several may lead."""
    node_id: str = ""
    """Name of this node in the cluster; empty: the host name."""
    host: str = "127.0.0.1"
    """Host that workers bind, and advertise unless `advertise_host` is another."""
    advertise_host: str = ""
    """Host at which routers and clients reach this node's workers, at the ports that they bind; empty: that
    of `host`. Needed where that is 0.0.0.0, or where a forwarder stands between (see `worker_ports`)."""
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    worker_cert: Path | None = None
    """PEM file with the certificate of this node's workers (role `worker`); needed with `[tls]`."""
    worker_key: Path | None = None
    """PEM file with that certificate's private key."""
    gpus: int = -1
    """GPUs of this node; -1: those that NVML finds. Another number declares so many without asking NVML."""
    state_dir: Path = Path(".chiron/agent")
    """Folder of the node lock, the records of running workers and their logs. One agent per folder."""
    socket_dir: Path | None = None
    """Folder of the workers' control sockets. Empty: state_dir/sockets, or a folder under /tmp named after
    state_dir where that path is too long for a Unix socket."""
    worker_python: str = ""
    """Python interpreter that runs workers; empty: the agent's own."""
    worker_ports: str = "0"
    """Ports of workers: `0` (any free one) or a range such as `50100-50199`."""
    worker_log_mib: int = 16
    """Size at which a worker's log is set aside, in MiB. Three older ones are kept."""
    worker_env: tuple[str, ...] = ()
    """NAME=VALUE settings added to the workers' environment."""
    max_restarts: int = 5
    """Crashes in a row after which an instance is FAILED."""
    max_load_retries: int = 1
    """Further tries after an engine has said that it cannot load, before the instance is FAILED. Few of
    those failures heal; memory that a predecessor is about to free is one."""
    restart_backoff_s: float = 1.0
    """Wait before the first restart, in seconds; doubles with each crash in a row, up to 30."""
    stable_after_s: float = 60.0
    """A worker that has been ready this long, in seconds, has its earlier crashes forgotten."""
    drain_timeout_s: float = 30.0
    """Time for running requests when a worker stops and the controller names none, in seconds."""
    stop_grace_s: float = 10.0
    """Time from SIGTERM to SIGKILL when a drained worker stops, in seconds."""
    load_timeout_s: float = 1800.0
    """Time within which a started worker must become ready, in seconds."""
    silence_timeout_s: float = 60.0
    """A ready worker that sends no statistics for this long is restarted, in seconds."""
    statistics_interval_ms: int = 1000
    """Time between a worker's statistics, in milliseconds: the control interval of the local autoscaler."""
    local_autoscaler: str = "model"
    """Who sets batch sizes and step-token budgets of the workers: `model`, `reactive`, `module:Class`, or
    `off`, which leaves them as they are. A model's `autoscaling.local` goes before this."""
    sleep_host_memory_gib: float = -1.0
    """Host memory that sleeping instances may take on this node, in GiB; -1: half of what the host has."""
    gpu_check_interval_s: float = 10.0
    """Time between two looks at the GPUs' health, in seconds."""
    cordon_after_failed_starts: int = 3
    """So many failed starts in a row take a GPU out of use, unless a single model is to blame; 0: never."""

    @property
    def reachable_host(self) -> str:
        """Host that routers and clients are told."""
        return self.advertise_host or self.host

    def __post_init__(self) -> None:
        """Refuses values out of range, naming the key."""
        check_addresses("controller", self.controller)
        if self.node_id and not _NODE_ID.fullmatch(self.node_id):
            raise ValueError(f"node_id: must be 1 to 253 characters of [A-Za-z0-9._-], not {self.node_id!r}")
        key = "advertise_host" if self.advertise_host else "host"
        if self.reachable_host in _ANY_ADDRESS:
            raise ValueError(f"{key}: must be an address that routers can reach, not {self.reachable_host!r}")
        if self.gpus < -1:
            raise ValueError(f"gpus: must be -1 (ask NVML) or a count, not {self.gpus}")
        for key in ("worker_cert", "worker_key"):
            if (getattr(self, key) is not None) is not self.tls.enabled:
                raise ValueError(f"{key}: needed with [tls], and only there")
        for key in ("max_restarts", "max_load_retries", "cordon_after_failed_starts"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must not be negative, not {getattr(self, key)}")
        for key in _POSITIVE:
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: must be above 0, not {getattr(self, key)}")
        if self.sleep_host_memory_gib < 0 and self.sleep_host_memory_gib != -1:
            raise ValueError(
                "sleep_host_memory_gib: must be -1 (half of the host's memory) or more, "
                f"not {self.sleep_host_memory_gib:g}"
            )
        if self.silence_timeout_s * 1000 < 2 * self.statistics_interval_ms:
            raise ValueError(
                "silence_timeout_s: must be at least twice statistics_interval_ms, "
                f"not {self.silence_timeout_s}"
            )
        for item in self.worker_env:
            if not _VARIABLE.fullmatch(item):
                raise ValueError(f"worker_env: expected NAME=VALUE, not {item!r}")
        parse_ports(self.worker_ports)
        try:
            check_name(self.local_autoscaler)
        except ValueError as error:
            raise ValueError(f"local_autoscaler: {error}, or off") from error


_POSITIVE = (
    "restart_backoff_s",
    "stable_after_s",
    "drain_timeout_s",
    "stop_grace_s",
    "load_timeout_s",
    "silence_timeout_s",
    "statistics_interval_ms",
    "gpu_check_interval_s",
    "worker_log_mib",
)


def parse_ports(text: str) -> range | None:
    """The ports of `worker_ports`; None when the system chooses. Raises ValueError naming the key."""
    match = _PORTS.fullmatch(text)
    if match is None:
        raise ValueError(f"worker_ports: expected 0, a port or FIRST-LAST, not {text!r}")
    first = int(match[1])
    last = int(match[2] or first)
    if first == last == 0:
        return None
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"worker_ports: must lie in 1-65535 in rising order, not {text!r}")
    return range(first, last + 1)
