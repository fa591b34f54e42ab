"""The tables `[auth]` and `[tls]`, which all services share, and the rule about listening off loopback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chiron.auth.credentials import is_loopback_host
from chiron.config import ConfigError
from chiron.rpc.identity import Identity, IdentityError, Tls


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Keys of the table `[auth]`."""

    require: bool = False
    """Ask every caller who it is: tenants at routers; administrators, agents and routers at controllers.
    False is for loopback alone, where whoever is on this host may do everything."""
    insecure: bool = False
    """Allow a service to listen off loopback without `require`, or without `[tls]`, where the network itself
    is trusted."""
    admin_key_file: Path | None = None
    """Controllers: file with an administrator's API key that counts beside those in the store, for the first
    `chiron keys create`. It is made, with mode 0600, where it does not exist."""
    key_file: Path | None = None
    """Agents and routers: file with the API key (role `agent` or `router`) that they show to the controller.
    Not needed with a client certificate of that role."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Keys of the table `[tls]`; `ca`, `cert` and `key` all three or none."""

    ca: Path | None = None
    """PEM file with the cluster's certificate authority. Empty: connections are not encrypted."""
    cert: Path | None = None
    """PEM file with this process's certificate, whose URI name tells its role (`chiron://role/router`)."""
    key: Path | None = None
    """PEM file with the certificate's private key."""
    mutual: bool = False
    """Routers and workers: take calls from holders of a certificate alone. Controllers always do."""

    def __post_init__(self) -> None:
        """Refuses half a set."""
        if self.mutual and self.ca is None:
            raise ValueError("ca: needed with mutual")
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if given and len(given) < 3:
            missing = next(name for name in ("ca", "cert", "key") if getattr(self, name) is None)
            raise ValueError(f"{missing}: needed with {given[0]}")

    @property
    def enabled(self) -> bool:
        """Whether connections are encrypted."""
        return self.ca is not None


def identity_of(tls: TlsSettings, auth: AuthSettings) -> Identity:
    """The identity of a process with these settings. Raises ConfigError for a file that cannot be used."""
    files = None
    if tls.ca is not None and tls.cert is not None and tls.key is not None:
        try:
            files = Tls.read(tls.ca, tls.cert, tls.key, mutual=tls.mutual)
        except IdentityError as error:
            raise ConfigError(str(error)) from error
    return Identity(files, read_key(auth.key_file, "key_file") if auth.key_file is not None else "")


def check_exposure(listen: str, auth: AuthSettings, tls: TlsSettings, *, key: str = "listen") -> None:
    """Raises ValueError("listen: ...") for a door that others could use unasked or unencrypted, or for none.

    Args:
        listen: host:port.
        auth: the process's.
        tls: the process's.
        key: the setting that has `listen`.
    """
    host, colon, port = listen.rpartition(":")
    if not (colon and port.isdecimal()):
        raise ValueError(f"{key}: expected host:port, got {listen!r}")
    if is_loopback_host(host) or auth.insecure:
        return
    if not auth.require:
        missing = "authentication (set require = true in [auth])"
    elif not tls.enabled:
        missing = "encryption (set ca, cert and key in [tls])"
    else:
        return
    raise ValueError(
        f"{key}: {listen} is reachable from other hosts, and there is no {missing}; where the network "
        "itself is trusted, set insecure = true in [auth]"
    )


def off_notice(listen: str, auth: AuthSettings) -> str:
    """What to log when nobody is asked who they are; empty: callers are asked."""
    if auth.require:
        return ""
    if is_loopback_host(listen.rpartition(":")[0]):
        return (
            f"authentication is OFF: every user of this host may do everything at {listen} ([auth] require)"
        )
    return f"authentication is OFF and insecure = true: whoever reaches {listen} may do everything there"


def read_key(file: Path, key: str) -> str:
    """The API key in a file. Raises ConfigError that names the setting `key`."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[auth] {key}: cannot read {file}: {error}") from error
    if not text:
        raise ConfigError(f"[auth] {key}: {file} is empty")
    return text
