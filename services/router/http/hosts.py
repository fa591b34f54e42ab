"""How many connections there are, in all and of each host. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable

from services.router.http.errors import RATE, SERVER, HttpError, after

_PAUSE_S = 1.0
_V6_PREFIX = 64
"""Bits of an IPv6 address that are one host's: whoever has one address has all that share them."""


class Hosts:
    """The connections of one door."""

    def __init__(self, most: int, share: float) -> None:
        """None yet.

        Args:
            most: connections at once.
            share: of these, that one host may have.
        """
        self._most = most
        self._most_of_one = max(1, int(most * share))
        self._open: Counter[str] = Counter()
        self.count = 0
        """Connections that are open."""

    def enter(self, address: str) -> Callable[[], None]:
        """Takes a place; returns what gives it back, once however often it is called.

        Raises:
            HttpError: 429, 503; there is none.
        """
        host = host_of(address)
        if self.count >= self._most:
            text = f"this server has {self._most} connections already"
            raise HttpError(503, text, type=SERVER, code="overloaded", headers=after(_PAUSE_S))
        if self._open[host] >= self._most_of_one:
            text = f"this host has {self._most_of_one} connections to this server already"
            raise HttpError(429, text, type=RATE, code="too_many_connections", headers=after(_PAUSE_S))
        self._open[host] += 1
        self.count += 1
        left = False

        def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            self.count -= 1
            self._open[host] -= 1
            if not self._open[host]:
                del self._open[host]

        return leave


def host_of(address: str) -> str:
    """Whom an IP address counts for; text that is none counts for itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _V6_PREFIX), strict=False))
