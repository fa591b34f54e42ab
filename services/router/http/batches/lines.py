"""Cuts a file that comes in chunks into its lines, in bounded memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NumberedLine(NamedTuple):
    """A line that is not blank."""

    number: int
    """From 1; blank lines count."""
    text: bytes | None
    """None: it is longer than lines may be, and was not kept."""


class TooManyLinesError(Exception):
    """A file has more lines than are read."""


class LineReader:
    """Reads one file."""

    def __init__(self, longest: int, most: int) -> None:
        """A reader.

        Args:
            longest: bytes of a line that is kept.
            most: lines, blank ones included.
        """
        self._longest = longest
        self._most = most
        self._begun = bytearray()
        """Of the line that has not ended."""
        self._too_long = False
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[NumberedLine]:
        """The lines that end in the next chunk. Raises TooManyLinesError."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            yield from self._end()
            start = end + 1
        self._add(chunk[start:])

    def finish(self) -> Iterator[NumberedLine]:
        """The last line, if nothing has ended it."""
        yield from self._end()

    def _add(self, part: bytes) -> None:
        if len(self._begun) + len(part) > self._longest:
            self._too_long = True
            self._begun.clear()
        if not self._too_long:
            self._begun += part

    def _end(self) -> Iterator[NumberedLine]:
        self._number += 1
        if self._number > self._most:
            raise TooManyLinesError
        text = bytes(self._begun)
        if self._number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if self._too_long:
            yield NumberedLine(self._number, None)
        elif text.strip():
            yield NumberedLine(self._number, text.strip())
        self._begun.clear()
        self._too_long = False
