"""Configuration of the controller's store, and opening it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from chiron.config import ConfigError
from chiron.store import MemoryStore, Store
from chiron.store.etcd import Connection, EtcdSettings, EtcdStore, Limits, TlsFiles
from chiron.store.etcd.keys import Keys

_PATIENCE_S = 6.0
"""How long one call may take over all members, in seconds: two tries of a member that has frozen."""


class StoreKind(Enum):
    """Where the cluster's state lies."""

    MEMORY = "memory"
    ETCD = "etcd"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Keys of the table `[controller.store]`."""

    kind: StoreKind = StoreKind.MEMORY
    """Where the cluster's state lies: in the controller's memory, or in etcd, where it outlives it. The etcd
    project marks 3.5.0 to 3.5.2 as not for production; run 3.5.6 or newer."""
    endpoints: tuple[str, ...] = ()
    """host:port of each member of etcd."""
    prefix: str = "/chiron/default"
    """Where this cluster's keys lie in etcd. Clusters that share an etcd need different ones, none below
    another's."""
    tls_ca: Path | None = None
    """PEM file with the authorities that etcd's certificate must come from; empty: no encryption."""
    tls_certificate: Path | None = None
    """PEM file with the certificate that the controller shows etcd."""
    tls_key: Path | None = None
    """PEM file with that certificate's private key."""
    user: str = ""
    """etcd user; empty: no authentication."""
    password_file: Path | None = None
    """File that holds the user's password; a line end after it does not count."""
    max_operations: int = 128
    """Most operations of one transaction: what etcd's `--max-txn-ops` says. Three are the store's own, the
    others are records. What a controller must change at once beyond it becomes several transactions."""
    max_request_bytes: int = 1_572_864
    """Most bytes of one transaction: what etcd's `--max-request-bytes` says."""
    lease_s: int = 10
    """Time after which another controller leads when the leader is silent, in whole seconds. A leader that
    does not reach etcd for four fifths of it stops leading by itself."""
    history_s: float = 900.0
    """The leader compacts etcd's history: what is older than this, in seconds, is dropped within as long
    again. It is the whole etcd's history, whoever else uses it. 0: never, for an etcd that compacts itself
    (`--auto-compaction-mode`); one that nobody compacts grows until its quota is used up."""

    def __post_init__(self) -> None:
        """Refuses values that cannot work together."""
        for key, least in (
            ("max_operations", 8),
            ("max_request_bytes", 1024),
            ("lease_s", 2),
            ("history_s", 0),
        ):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: must be >= {least}, not {getattr(self, key):g}")
        if self.kind is StoreKind.MEMORY:
            for key in ("endpoints", "tls_ca", "tls_certificate", "tls_key", "user", "password_file"):
                if getattr(self, key):
                    raise ValueError(f'{key}: only with kind = "etcd"')
            return
        # Both raise errors that begin with the key, which is the same there.
        EtcdSettings(endpoints=self.endpoints)
        Keys(self.prefix)
        for key, needed in (
            ("tls_certificate", "tls_key"),
            ("tls_key", "tls_certificate"),
            ("tls_certificate", "tls_ca"),
            ("user", "password_file"),
            ("password_file", "user"),
        ):
            if getattr(self, key) and not getattr(self, needed):
                raise ValueError(f"{needed}: needed with {key}")


def open_store(config: StoreConfig, decisions_kept: int) -> Store:
    """Makes the store; etcd is not called yet. Raises ConfigError for a file that cannot be read."""
    if config.kind is StoreKind.MEMORY:
        return MemoryStore(decisions_kept=decisions_kept)
    tls = None
    if config.tls_ca is not None:
        tls = TlsFiles(config.tls_ca, config.tls_certificate, config.tls_key)
    settings = EtcdSettings(
        config.endpoints, tls, config.user, _password(config.password_file), patience_s=_PATIENCE_S
    )
    try:
        connection = Connection(settings)
    except ValueError as error:
        # "tls.ca: ..." there is "tls_ca: ..." here.
        raise ConfigError(f"[controller] store.{str(error).replace('.', '_', 1)}") from error
    limits = Limits(operations=config.max_operations, request_bytes=config.max_request_bytes)
    return EtcdStore(connection, config.prefix, decisions_kept=decisions_kept, limits=limits)


def _password(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[controller] store.password_file: cannot read {file}: {error}") from error
