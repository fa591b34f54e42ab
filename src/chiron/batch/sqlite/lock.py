"""One process holds a queue's file."""

from __future__ import annotations

import fcntl
import os
import socket

from chiron.batch.contract import RefusedError


class FileLock:
    """An advisory lock on a file beside the queue's, which goes with the process that holds it."""

    def __init__(self, path: str) -> None:
        """Raises RefusedError, which names the holder, or OSError."""
        self._file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            raise RefusedError(f"{path} is held by {holder}: a SQLite queue belongs to one router") from None
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Lets another process have the queue."""
        os.ftruncate(self._file, 0)
        os.close(self._file)
