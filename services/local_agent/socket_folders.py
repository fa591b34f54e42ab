"""Folders of control sockets outside a state folder whose own path is too long, and who removes them.

An agent holds its folder locked for as long as it lives and removes it when it stops. What one that was
killed has left behind is removed by the sweeper of its cluster, and once it is empty by that of a later one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/tmp")
"""A Unix socket's path holds at most 107 bytes: the shortest one there is."""
STALE_S = 3600.0
"""An empty folder that nobody holds is removed once nothing has changed in it for so long."""


def short_hash(text: str) -> str:
    """Sixteen hexadecimal digits that stand for the text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def short_folder(state_dir: Path, root: Path = ROOT) -> Path:
    """This user's folder for the sockets of a state folder; it is not made here."""
    return root / f"chiron-{os.getuid()}-{short_hash(str(state_dir))}"


@contextlib.contextmanager
def held(folder: Path, state_dir: Path) -> Iterator[None]:
    """Marks a folder as in use; at the end it is removed, if it is a short one and empty."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if folder == short_folder(state_dir, folder.parent):
            _remove_empty(folder)
        os.close(descriptor)


def remove_left(state_dir: Path, root: Path = ROOT) -> None:
    """Removes the short folder of an agent that is gone, as its workers are, with the sockets in it."""
    folder = short_folder(state_dir, root)
    for socket in folder.glob("*.sock"):
        socket.unlink(missing_ok=True)
    _remove_empty(folder)


def remove_stale(root: Path = ROOT) -> None:
    """Removes this user's short folders that are empty, held by nobody and old."""
    name = re.compile(rf"chiron-{os.getuid()}-[0-9a-f]{{16}}")
    oldest = time.time() - STALE_S
    with os.scandir(root) as entries:
        found = [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]
    for folder in found:
        with contextlib.suppress(OSError):  # It has just gone, or is another user's.
            stat = folder.lstat()
            if stat.st_uid == os.getuid() and stat.st_mtime < oldest and not _in_use(folder):
                _remove_empty(folder)


def _in_use(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # It is not there, or somebody's socket is in it.
        folder.rmdir()
