"""What a chunk of a request's body says of its size: the parser tells it to nobody. Pure."""

from __future__ import annotations

_LINE_BYTES = 64
"""Of what came before that are looked at again: a chunk's size may come in several pieces."""


class ChunkSizes:
    """Of one connection. A size that cannot be found, behind a long chunk extension for one, is 0."""

    def __init__(self) -> None:
        self.announced = 0
        """Bytes of the chunk that is on its way, those that have come included; 0: none is."""
        self._begun = False
        """Whether that chunk began in what is being parsed."""
        self._taken = 0
        self._before = b""

    def begin(self) -> None:
        """The line with a chunk's size is over."""
        self._begun, self._taken = True, 0

    def take(self, size: int) -> None:
        """So many bytes of a body have been parsed."""
        self._taken += size

    def end(self) -> None:
        """The chunk has come as a whole, or its request is over."""
        self._begun, self.announced = False, 0

    def parsed(self, data: bytes) -> None:
        """All callbacks for these bytes are over."""
        if self._begun:
            # A chunk that has not ended is the last thing in them, and its size the line before it.
            self._begun = False
            lines = self._before + data[: len(data) - self._taken]
            start = lines.rfind(b"\n", 0, -1)
            if start >= 0 and lines.endswith(b"\n"):
                self.announced = _size(lines[start + 1 :])
        self._before = (
            data[-_LINE_BYTES:] if len(data) >= _LINE_BYTES else (self._before + data)[-_LINE_BYTES:]
        )


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        return int(digits, 16)
    except ValueError:
        return 0  # A trailer.
