"""Locks of a host: one agent for a state folder, one agent for a GPU.

The names of abstract Unix sockets belong to the host's network namespace, not to a file system: they cannot
be removed from under their holder, need no clean-up, and the kernel frees them when the process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from chiron.config import ConfigError
from services.local_agent.gpus import GpuState


class HeldError(Exception):
    """Another process holds a name. The text is its pid, or says that it is not known."""


class HostLock:
    """Holds one name on this host until closed."""

    def __init__(self, name: str) -> None:
        """Takes the name. Raises HeldError."""
        self._sockets: list[socket.socket] = []
        try:
            self._bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise HeldError(_holder(name)) from None
        # Found by those who are refused, in /proc/net/unix.
        with contextlib.suppress(OSError):
            self._bind(f"{name} pid {os.getpid()}")

    def close(self) -> None:
        """Gives the name back."""
        for held in self._sockets:
            held.close()

    def _bind(self, name: str) -> None:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0{name}")
        except OSError:
            held.close()
            raise
        self._sockets.append(held)


class NodeLock:
    """Holds a state folder until closed, also when its lock file is removed meanwhile."""

    def __init__(self, state_dir: Path) -> None:
        """Takes the lock. Raises ConfigError when another agent holds it or the folder cannot be used."""
        path = state_dir / "lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            folder = state_dir.stat()
        except OSError as error:
            raise ConfigError(f"state_dir: cannot use {state_dir}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._name = HostLock(f"chiron-agent {folder.st_dev}:{folder.st_ino}")
        except (BlockingIOError, HeldError) as error:
            pid = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            holder = str(error) if isinstance(error, HeldError) else f"pid {pid}"
            raise ConfigError(f"state_dir: {state_dir} is in use by another agent ({holder})") from None
        # Only tells the pid: on a full disk the lock is held all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Gives the lock back."""
        self._name.close()
        os.close(self._fd)


class GpuLocks:
    """Holds a host's GPUs until closed, whatever state folder the agent has."""

    def __init__(self, gpus: Iterable[GpuState]) -> None:
        """Takes all of them. Raises ConfigError when another agent holds one."""
        self._locks: list[HostLock] = []
        for gpu in gpus:
            try:
                self._locks.append(HostLock(f"chiron-gpu {gpu.uuid}"))
            except HeldError as holder:
                self.close()
                text = f"GPU {gpu.index} ({gpu.uuid}) belongs to another agent on this host ({holder})"
                raise ConfigError(f"gpus: {text}; run one agent for each node") from None

    def close(self) -> None:
        """Gives them back."""
        for lock in self._locks:
            lock.close()


def _holder(name: str) -> str:
    marker = f"@{name} pid "
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
            if marker in line:
                return f"pid {line.partition(marker)[2].strip()}"
    return "its pid is not known"
