"""The agent's journal on disk: append-only lines, each with a checksum, rewritten as a whole now and then.

A line is one write: eight hexadecimal digits (CRC-32 of what follows the space), a space, a JSON list. The
first line names the format. A line without its end is a write that a crash has cut off: nobody has acted on
it, so it is passed over. Any other damage is an error: what it hides may be a worker that holds GPUs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chiron.config import ConfigError
from services.local_agent.memory import Entry, Memory, decode, encode
from services.local_agent.records import sync_folder

_LOG = logging.getLogger(__name__)
_FORMAT = {"journal": 1}
_REWRITE_BYTES = 64 * 1024
_REWRITE_GROWTH = 4


class JournalFile:
    """One journal. All methods block for as long as the disk takes; one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Reads the journal; writes nothing. Raises ConfigError, naming the line, where it is damaged."""
        self.path = path
        self.memory = Memory()
        """The state, entries that could not be written yet included."""
        self._size = 0
        self._size_rewritten = 0
        # Without a file, or after a line that was cut off, the first write makes a whole one.
        self._whole = self._read()

    def commit(self, entries: Sequence[Entry]) -> None:
        """Adds the entries in one line and returns once they are on disk.

        Raises OSError when they are not. They are part of `memory` all the same, and of the next write that
        succeeds.
        """
        for entry in entries:
            self.memory.take(entry)
        outgrown = self._size > max(_REWRITE_BYTES, _REWRITE_GROWTH * self._size_rewritten)
        if not self._whole:
            self._rewrite()
        elif not outgrown or not self._could_rewrite():
            self._append(entries)

    def _read(self) -> bool:
        try:
            *lines, rest = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"state_dir: cannot read {self.path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                self._read_line(number, line)
            except ValueError as error:
                raise ConfigError(_damaged(self.path, number, str(error))) from error
        self._size = sum(len(line) + 1 for line in lines)
        self._size_rewritten = self._size
        if rest:
            _LOG.warning(
                "%s, line %d: a write was cut off; it took no effect and is passed over",
                self.path,
                len(lines) + 1,
            )
        return bool(lines) and not rest

    def _read_line(self, number: int, line: bytes) -> None:
        content = _unwrap(line)
        if number == 1:
            if content != [_FORMAT]:
                raise ValueError(f"this version reads format {_FORMAT['journal']}, not {content}")
            return
        for item in content:
            self.memory.take(decode(item))

    def _append(self, entries: Sequence[Entry]) -> None:
        line = _wrap([encode(entry) for entry in entries])
        # Whatever fails below, what the file now ends with is unknown until it is written anew.
        self._whole = False
        with self.path.open("ab", buffering=0) as file:
            _write_all(file.fileno(), line)
            os.fsync(file.fileno())
        self._whole = True
        self._size += len(line)

    def _rewrite(self) -> None:
        text = _wrap([_FORMAT]) + _wrap([encode(entry) for entry in self.memory.entries()])
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            with temporary.open("wb", buffering=0) as file:
                os.fchmod(file.fileno(), 0o600)
                _write_all(file.fileno(), text)
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_folder(self.path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._whole = True
        self._size = self._size_rewritten = len(text)

    def _could_rewrite(self) -> bool:
        try:
            self._rewrite()
        except OSError as error:
            # An append needs less room.
            _LOG.warning("%s grows, it cannot be rewritten: %s", self.path, error.strerror)
            return False
        return True


def _wrap(content: list[Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _unwrap(line: bytes) -> list[Any]:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("its checksum is wrong")
    content = json.loads(text)
    if not isinstance(content, list):
        raise ValueError("it is no list")
    return content


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _damaged(path: Path, number: int, what: str) -> str:
    return (
        f"state_dir: {path}, line {number}: {what}. The journal says which workers hold this node's GPUs; "
        f"restore the file, or end the workers (their command lines name {path.parent}) and remove it"
    )
