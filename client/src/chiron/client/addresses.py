"""What may be given as the address of a router."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HOST_PORT = re.compile(r"(?:[^:\[\]\s]+|\[[^\[\]\s]+\]):([0-9]{1,5})")
"""An IPv6 host stands in brackets."""


def check_routers(addresses: Iterable[str]) -> None:
    """Raises ValueError unless each is `host:port`, `unix:path` or a gRPC target like `dns:///host:port`.

    gRPC itself takes a missing port for 443, and one out of range for another port.
    """
    for address in addresses:
        if address.startswith("unix:"):
            continue
        parts = _HOST_PORT.fullmatch(address.rpartition("///")[2])
        if parts is None or not 0 < int(parts[1]) < 65_536:
            raise ValueError(f"routers: expected host:port, not {address!r}")
