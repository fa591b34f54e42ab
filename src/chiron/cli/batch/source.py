"""The lines of a batch file, in bounded memory: what is blank, too long, or in the file by accident."""

from __future__ import annotations

import errno
import gzip
import io
import os
import select
import sys
import threading
import zlib
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, cast

from chiron.cli.batch.lines import Item, read_line
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import MalformedItem

MOST_LINE_BYTES = 16 << 20
"""Longest line: a message to a router holds no more."""
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 20
_LOOK_S = 0.2


class BatchFile:
    """A file of requests, read once from its beginning to its end."""

    def __init__(self, name: str, model: str = "") -> None:
        """Opens the file; `-` is stdin. Raises CliError.

        Args:
            name: of the file.
            model: of lines that name none.
        """
        self.name = "stdin" if name == "-" else name
        self._model = model
        self._numbers = array("Q")
        self._held = ExitStack()
        self._ended = threading.Event()
        self._seen: dict[int, int] = {}
        try:
            raw = _Stdin(self._ended) if name == "-" else io.FileIO(name)
        except OSError as error:
            raise CliError(f"{self.name}: {error.strerror or error}", EXIT_BAD_START) from error
        self._stream: BinaryIO = io.BufferedReader(raw, _BUFFER)
        self._held.callback(self._stream.close)

    def line_of(self, index: int) -> int:
        """The number, from 1, of the line that an item came from."""
        return self._numbers[index]

    @property
    def items(self) -> int:
        """Items read so far."""
        return len(self._numbers)

    def close(self) -> None:
        """Closes the file; whoever waits for its next line sees its end."""
        self._ended.set()
        self._held.close()

    def __iter__(self) -> Iterator[Item]:
        """The items; what cannot be read is a MalformedItem. Raises CliError when the file itself fails."""
        try:
            # Not before: stdin may have nothing to read yet.
            self._unpack()
            for number, line in enumerate(self._lines(), 1):
                if line is not None and not line.strip():
                    continue
                item = self._item(number, line)
                self._numbers.append(number)
                yield item
        except (OSError, EOFError, zlib.error) as error:
            text = f"{self.name}: cannot be read after item {self.items}: {error}"
            raise CliError(text, EXIT_BAD_START) from error

    def _unpack(self) -> None:
        stream = cast(io.BufferedReader, self._stream)
        if stream.peek(2)[:2] == _GZIP:
            unpacked = self._held.enter_context(gzip.GzipFile(fileobj=stream))
            self._stream = io.BufferedReader(cast(io.RawIOBase, unpacked), _BUFFER)

    def _item(self, number: int, line: bytes | None) -> Item:
        if line is None:
            return MalformedItem(f"longer than {MOST_LINE_BYTES >> 20} MiB")
        item = read_line(line, self._model)
        custom_id = item.custom_id if isinstance(item, MalformedItem) else item.get("custom_id")
        if custom_id:
            # Of millions of ids, their hashes take a fraction of the memory.
            first = self._seen.setdefault(hash(custom_id), number)
            if first != number:
                # With its id, which the router refuses whatever is to become of invalid items.
                return MalformedItem(f"custom_id {custom_id!r} is that of line {first}", custom_id)
        return item

    def _lines(self) -> Iterator[bytes | None]:
        """Each line without its end; None: one that is too long, passed over."""
        first = True
        while line := self._stream.readline(MOST_LINE_BYTES + 2):
            if not line.endswith(b"\n") and len(line) > MOST_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = self._stream.readline(_BUFFER)
                yield None
            else:
                yield (line.removeprefix(_BOM) if first else line).rstrip(b"\r\n")
            first = False


class _Stdin(io.RawIOBase):
    """Stdin, whose reader does not wait for ever for somebody who types nothing."""

    def __init__(self, ended: threading.Event) -> None:
        """Raises OSError where the command has no stdin."""
        self._ended = ended
        if sys.stdin is None:
            raise OSError(errno.EBADF, "is closed")
        self._number = sys.stdin.fileno()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ended.is_set():
            if select.select([self._number], [], [], _LOOK_S)[0]:
                data = os.read(self._number, len(buffer))
                buffer[: len(data)] = data
                return len(data)
        return 0
