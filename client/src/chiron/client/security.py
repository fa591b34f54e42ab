"""TLS, and the rule that an API key never travels unencrypted off this host."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from chiron.client.errors import InsecureTransport
from chiron.client.reachability import host_of


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How connections are encrypted. Each value is PEM as bytes, or the path of a PEM file."""

    ca: bytes | str | Path | None = None
    """Authorities to trust; None: those of gRPC's own list."""
    cert: bytes | str | Path | None = None
    """This client's certificate chain, for mutual TLS; needs `key`."""
    key: bytes | str | Path | None = field(default=None, repr=False)
    """The certificate's private key; needs `cert`."""
    server_name: str = ""
    """Name that the servers' certificates must carry; empty: the host that is dialled."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("TlsConfig: cert and key belong together")

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials for channels. Raises OSError when a file cannot be read."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


def check_api_key(api_key: str, addresses: tuple[str, ...], *, encrypted: bool, insecure_ok: bool) -> None:
    """Raises InsecureTransport when `api_key` would leave this host in clear text."""
    if not api_key or encrypted or insecure_ok:
        return
    for address in addresses:
        if not is_loopback(address):
            raise InsecureTransport(
                f"refusing to send an API key to {address} without TLS: pass tls=TlsConfig(...), or "
                "insecure_ok=True where the network itself is trusted"
            )


def is_loopback(address: str) -> bool:
    """True when connections to `host:port` or `unix:path` cannot leave this host."""
    if address.startswith("unix:"):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(value: bytes | str | Path | None) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else Path(value).read_bytes()
