"""Who this process is to others: its certificate and its API key. One process has one identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

SERVER_NAME = "{}.chiron.internal"
"""DNS name in the certificate of each role's servers, so that a caller knows a controller from a worker."""


class IdentityError(Exception):
    """Certificate or key files that cannot be used; the text names the setting."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM contents: the authority to trust, and this process's certificate with its key."""

    ca: bytes
    cert: bytes
    key: bytes = field(repr=False)
    mutual: bool = False
    """As a router or worker: ask callers for a certificate. Controllers always do."""

    @classmethod
    def read(cls, ca: Path, cert: Path, key: Path, *, mutual: bool = False) -> Tls:
        """Reads the files. Raises IdentityError."""
        found = {}
        for name, file in (("ca", ca), ("cert", cert), ("key", key)):
            try:
                found[name] = file.read_bytes()
            except OSError as error:
                raise IdentityError(f"[tls] {name}: cannot read {file}: {error.strerror}") from error
            if b"-----BEGIN" not in found[name]:
                raise IdentityError(f"[tls] {name}: {file} is no PEM file")
        return cls(found["ca"], found["cert"], found["key"], mutual)

    def for_servers(self, *, mutual: bool) -> grpc.ServerCredentials:
        """What a server shows, and whether it asks callers for a certificate of the same authority."""
        return grpc.ssl_server_credentials(
            [(self.key, self.cert)], root_certificates=self.ca, require_client_auth=mutual
        )

    def for_channels(self) -> grpc.ChannelCredentials:
        """What a caller shows and trusts."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


@dataclass(frozen=True, slots=True)
class Identity:
    """What this process shows to others."""

    tls: Tls | None = None
    """None: connections are not encrypted."""
    api_key: str = field(default="", repr=False)
    """Shown to controllers; empty: none."""


_present = Identity()


def assume(identity: Identity) -> None:
    """Sets the identity of this process, before it opens a connection or a port."""
    global _present
    _present = identity


def present() -> Identity:
    """The identity of this process."""
    return _present
