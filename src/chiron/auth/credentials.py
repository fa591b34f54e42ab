"""What a caller shows: an API key in the call's metadata, names in its certificate."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

ROLE_URI = "chiron://role/"
TENANT_URI = "chiron://tenant/"
_BEARER = "bearer "


class CallContext(Protocol):
    """The part of a gRPC call that tells who calls."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The call's metadata."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the handshake proved."""

    def peer(self) -> str:
        """The caller's address."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one call came with. Nothing of it has been judged."""

    api_key: str = ""
    """The bearer token; empty: none."""
    subjects: tuple[str, ...] = ()
    """URI names of the caller's certificate, which the handshake has verified."""
    local: bool = False
    """The caller is on this host."""

    @classmethod
    def of(cls, context: CallContext) -> Credentials:
        """Reads a call."""
        return cls(bearer(context.invocation_metadata()), _subjects(context), is_local_peer(context.peer()))

    def has_role(self, role: str) -> bool:
        """Whether the certificate is one of this role."""
        return ROLE_URI + role in self.subjects

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that the certificate names."""
        return tuple(one.removeprefix(ROLE_URI) for one in self.subjects if one.startswith(ROLE_URI))


def has_role(context: CallContext, role: str) -> bool:
    """Whether the caller's certificate is one of this role; without certificates it costs next to nothing."""
    return (ROLE_URI + role).encode() in context.auth_context().get("peer_uri", ())


def bearer(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The bearer token among a call's metadata; empty: none."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return ""


def is_local_peer(peer: str) -> bool:
    """Whether a caller, as gRPC names it (`ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`), is on this host."""
    kind, _, address = peer.partition(":")
    if kind == "unix":
        return True
    return is_loopback_host(unquote(address).rpartition(":")[0])


def is_loopback_host(host: str) -> bool:
    """Whether connections to (or from) the host cannot leave this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _subjects(context: CallContext) -> tuple[str, ...]:
    return tuple(name.decode(errors="replace") for name in context.auth_context().get("peer_uri", ()))
