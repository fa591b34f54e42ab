"""Who this process is to others: its certificate and its API key. One process has one identity."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509

SERVER_NAME = "{}.chiron.internal"
"""DNS name in the certificate of each role's servers, so that a caller knows a controller from a worker."""


class IdentityError(Exception):
    """Certificate or key files that cannot be used; the text names the setting."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM contents: the authority to trust, and this process's certificate with its key, if it has one."""

    ca: bytes
    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    mutual: bool = False
    """As a router or worker: ask callers for a certificate. Controllers always do."""

    @classmethod
    def trusting(cls, ca: Path) -> Tls:
        """That of a caller who shows no certificate. Raises IdentityError."""
        return cls(_read_authority(ca))

    @classmethod
    def read(cls, ca: Path, cert: Path, key: Path, *, mutual: bool = False) -> Tls:
        """Reads the files. Raises IdentityError, also where they are no pair or not valid now."""
        own = {name: _read_pem(name, file) for name, file in (("cert", cert), ("key", key))}
        authority = _read_authority(ca)
        _check_dates(cert, own["cert"])
        _check_key(cert, key)
        return cls(authority, own["cert"], own["key"], mutual)

    def for_servers(self, *, mutual: bool) -> grpc.ServerCredentials:
        """What a server shows, and whether it asks callers for a certificate of the same authority."""
        return grpc.ssl_server_credentials(
            [(self.key, self.cert)], root_certificates=self.ca, require_client_auth=mutual
        )

    def for_channels(self) -> grpc.ChannelCredentials:
        """What a caller shows and trusts."""
        return grpc.ssl_channel_credentials(self.ca, self.key or None, self.cert or None)


def _read_pem(name: str, file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise IdentityError(f"[tls] {name}: cannot read {file}: {error.strerror}") from error
    if b"-----BEGIN" not in content:
        raise IdentityError(f"[tls] {name}: {file} is no PEM file")
    return content


def _read_authority(file: Path) -> bytes:
    content = _read_pem("ca", file)
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise IdentityError(f"[tls] ca: {file} holds no certificate") from error
    return content


def _check_dates(file: Path, content: bytes) -> None:
    """gRPC would not say why nobody takes the certificate."""
    try:
        found = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise IdentityError(f"[tls] cert: {file} holds no certificate") from error
    now = datetime.now(UTC)
    if now > found.not_valid_after_utc:
        raise IdentityError(f"[tls] cert: {file} expired at {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < found.not_valid_before_utc:
        raise IdentityError(
            f"[tls] cert: {file} is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )


def _check_key(cert: Path, key: Path) -> None:
    """gRPC would say that it cannot listen."""
    try:
        # Without a password, a key that has one would ask for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        told = (
            f"is not the key of {cert}"
            if mismatch
            else "holds no private key that is usable without a password"
        )
        raise IdentityError(f"[tls] key: {key} {told}") from error
    except OSError as error:
        raise IdentityError(f"[tls] key: cannot read {key}: {error.strerror}") from error


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
