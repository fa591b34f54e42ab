"""The `[router.http]` table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_OWN_PORTS = re.compile(r"http:.*:80|https:.*:443")
"""Origins as browsers write them, and ports that they leave out: what is written otherwise never matches."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The OpenAI-compatible HTTP door."""

    listen: str = ""
    """host:port of the door; port 0 takes any free one. Empty: this router has no HTTP door."""
    connections: int = 10_000
    """Most connections at once; one more is told so and closed."""
    host_share: float = 0.5
    """Share of `connections` that one host (an IPv4 address, or 64 bits of an IPv6 address) may have, so that
    none keeps all others out. 1: all, as behind a proxy, which is one host."""
    header_bytes: int = 32_768
    """Longest request line with its headers, in bytes."""
    header_s: float = 10.0
    """How long a new connection may take for a TLS handshake, and a request for its headers, in seconds."""
    body_bytes: int = 16 << 20
    """Largest body of a request, in bytes, other than a file that is handed in."""
    file_bytes: int = 200 << 20
    """Largest file that is handed in, in bytes."""
    body_s: float = 30.0
    """How long a request's body may be waited for, in seconds, beyond what `body_bytes_per_s` gives it."""
    body_bytes_per_s: int = 65_536
    """Each of so many bytes of a body that have come gives it one more second."""
    keep_alive_s: float = 75.0
    """How long a connection stays open between two requests, in seconds."""
    pipelined: int = 8
    """Most requests that a client may send ahead on one connection while one is answered there; one more is
    refused once they are answered, and the connection ends."""
    write_buffer_bytes: int = 65_536
    """Bytes of an answer that are held for a client that does not take them; beyond it the engine's output
    waits, and the request ends once nothing has been taken for `reader_stall_s`."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages browsers let call this door, e.g. `https://chat.example`; `*`: any. Empty: none."""
    open_metrics: bool = False
    """Whether `/metrics` answers everybody. Where callers are asked who they are, it answers administrators
    alone otherwise."""

    def __post_init__(self) -> None:
        """Rejects what cannot work, naming the key."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not 0 < value < math.inf:
                raise ValueError(f"{one.name}: must be > 0 and finite, not {value:g}")
            if isinstance(value, int) and not isinstance(value, bool):
                least = 0 if one.name == "pipelined" else 1
                if value < least:
                    raise ValueError(f"{one.name}: must be >= {least}, not {value}")
        if self.host_share > 1:
            raise ValueError(f"host_share: must be <= 1, not {self.host_share:g}")
        for origin in self.cors_origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                text = "expected scheme://host, scheme://host:port or *, in small letters and without a path"
                raise ValueError(f"cors_origins: {text}, not {origin!r}")
            if _OWN_PORTS.fullmatch(origin) is not None:
                text = "browsers leave the scheme's own port out, and so must"
                raise ValueError(f"cors_origins: {text} {origin!r}")
