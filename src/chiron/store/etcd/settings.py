"""How an etcd cluster is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HOST_PORT = re.compile(r"(?:[^:/\[\]\s]+|\[[^\[\]\s]+\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; read when the connection is made."""

    ca: Path
    """Authorities that the server's certificate must come from."""
    certificate: Path | None = None
    """The client's own certificate; None: it shows none."""
    key: Path | None = None
    """The certificate's private key."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is and how long to wait for it. Raises ValueError("key: what is wrong")."""

    endpoints: tuple[str, ...]
    """host:port of each member; the next one is tried when one fails."""
    tls: TlsFiles | None = None
    """None: without encryption."""
    user: str = ""
    """Empty: no authentication."""
    password: str = ""
    attempt_timeout_s: float = 3.0
    """How long one member may take for one call."""
    patience_s: float = 15.0
    """How long a call may take over all members, before UnavailableError."""
    keepalive_time_s: float = 10.0
    """Silence after which a connection is asked whether it lives."""
    keepalive_timeout_s: float = 5.0
    """How long that answer may take before the connection counts as dead."""
    reconnect_max_s: float = 2.0
    """Longest pause between two attempts to reach etcd again."""

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if not self.endpoints:
            raise ValueError("endpoints: at least one host:port is needed")
        for endpoint in self.endpoints:
            parts = _HOST_PORT.fullmatch(endpoint)
            if parts is None or not 0 < int(parts[1]) < 65_536:
                raise ValueError(f"endpoints: expected host:port, not {endpoint!r}")
        if self.password and not self.user:
            raise ValueError("user: a password needs one")
        if self.tls is not None and (self.tls.certificate is None) != (self.tls.key is None):
            missing = "key" if self.tls.key is None else "certificate"
            raise ValueError(f"{missing}: a client's certificate and its key come together")
        for name in ("attempt_timeout_s", "patience_s", "keepalive_time_s", "keepalive_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name):g}")
