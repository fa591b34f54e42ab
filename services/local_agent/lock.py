"""The node lock: one agent per state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from chiron.config import ConfigError


class NodeLock:
    """Holds `state_dir/lock` until closed; the kernel frees it when the process dies."""

    def __init__(self, state_dir: Path) -> None:
        """Takes the lock. Raises ConfigError when another agent holds it or the folder cannot be used."""
        path = state_dir / "lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"state_dir: cannot use {state_dir}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise ConfigError(f"state_dir: {state_dir} is in use by another agent (pid {holder})") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._fd)
