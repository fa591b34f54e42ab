"""The files of a recording: written in a thread, one after the other, the oldest removed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


class RecordingFiles:
    """One router's files in a folder. Its methods may block: they belong to one thread at a time."""

    def __init__(self, folder: Path, owner: str, file_bytes: int, files: int) -> None:
        """Opens nothing yet.

        Args:
            folder: made where it does not exist.
            owner: this router's id; names its files.
            file_bytes: size at which a file ends.
            files: how many are kept.
        """
        self._folder = folder
        self._prefix = f"requests-{_SAFE.sub('_', owner)}-"
        self._file_bytes = file_bytes
        self._files = files
        self._out: int | None = None
        self._size = 0

    def full(self) -> bool:
        """Whether the next line belongs into a new file."""
        return self._out is None or self._size >= self._file_bytes

    def begin(self, header: str) -> None:
        """Begins a file with its header. Raises OSError."""
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        path = self._folder / f"{self._prefix}{now:%Y%m%dT%H%M%S.%f}Z.jsonl"
        self._out, self._size = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 0
        try:
            self.write([header])
        except OSError:
            path.unlink(missing_ok=True)
            raise
        for old in sorted(self._folder.glob(f"{self._prefix}*.jsonl"))[: -self._files]:
            old.unlink(missing_ok=True)

    def write(self, lines: Sequence[str]) -> None:
        """Adds lines to the present file: all of them or, where the disk takes no more, none.

        Raises OSError; the next line begins another file.
        """
        assert self._out is not None
        left = "".join(lines).encode()
        size = self._size + len(left)
        try:
            while left:
                left = left[os.write(self._out, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._out, self._size)
            with contextlib.suppress(OSError):
                self.close()
            raise
        self._size = size

    def close(self) -> None:
        """Ends the present file. Raises OSError."""
        out, self._out = self._out, None
        if out is not None:
            os.close(out)
