"""The router's last table on disk, so that it can serve after a restart without a controller.

A file is a magic word, the SHA-256 of what follows, and a StoredRoutingTable. It is replaced as a whole, by
rename, and holds the ticket keys: mode 0600.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from chiron.internal.v1 import router_pb2

log = logging.getLogger(__name__)
_MAGIC = b"CHIRON-ROUTER-TABLE\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_SCHEMA_VERSION = 1
_PAUSE_S = 1.0
"""Least time between two writes: what changes meanwhile is written once."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class TableFileError(Exception):
    """A file that holds no usable table; the text names it and what is wrong."""


def read_table(path: Path) -> router_pb2.StoredRoutingTable | None:
    """Reads a file; None when there is none. Blocks.

    Keys that others could have read are left out.

    Raises:
        TableFileError: it cannot be read, is damaged, or a later version has written it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TableFileError(f"cannot read {path}: {error.strerror}") from error
    head = len(_MAGIC) + _DIGEST_BYTES
    body = content[head:]
    if not content.startswith(_MAGIC) or content[len(_MAGIC) : head] != hashlib.sha256(body).digest():
        raise TableFileError(f"{path} is damaged, or no routing table")
    try:
        stored = router_pb2.StoredRoutingTable.FromString(body)
    except DecodeError as error:
        raise TableFileError(f"{path} is damaged: {error}") from error
    if stored.schema_version != _SCHEMA_VERSION:
        raise TableFileError(
            f"{path} has version {stored.schema_version}; this router reads {_SCHEMA_VERSION}"
        )
    if mode & _OTHERS and stored.HasField("keys"):
        log.warning("%s could be read by others: the ticket keys in it are not used", path)
        stored.ClearField("keys")
    return stored


def write_table(path: Path, stored: router_pb2.StoredRoutingTable) -> None:
    """Replaces the file by a new one, so that a reader sees the old or the new one, whole. Blocks.

    Raises OSError.
    """
    body = stored.SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_MAGIC + hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class TableKeeper:
    """Writes the table soon after each change, off the event loop and at most once a second."""

    def __init__(self, path: Path, make: Callable[[], router_pb2.StoredRoutingTable]) -> None:
        """Nothing is written before `changed`.

        Args:
            path: of the file.
            make: the table and the keys as they are now.
        """
        self._path = path
        self._make = make
        self._changed = asyncio.Event()
        self._complained = False
        self.writes = 0
        """Files written so far."""

    def changed(self) -> None:
        """The table or the keys have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Writes until cancelled; what has changed by then is written still."""
        try:
            while True:
                await self._changed.wait()
                await self._write()
                await asyncio.sleep(_PAUSE_S)
        finally:
            if self._changed.is_set():
                await self._write()

    async def _write(self) -> None:
        self._changed.clear()
        stored = self._make()
        stored.schema_version = _SCHEMA_VERSION
        stored.written_unix_ms = time.time_ns() // 1_000_000
        try:
            await asyncio.to_thread(write_table, self._path, stored)
        except OSError as error:
            # The router serves without the file; the next change tries again.
            if not self._complained:
                log.warning("cannot keep the routing table in %s: %s", self._path, error.strerror or error)
            self._complained = True
            return
        self.writes += 1
        self._complained = False
