"""The agent's state folder: its name, and a folder of files for each instance.

Files are replaced atomically and synced, so that a crash leaves the old or the new content.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from chiron.config import ConfigError

_ENDED_KEPT = 20


class StateDir:
    """The files of one agent. All methods block for as long as the disk takes."""

    def __init__(self, path: Path) -> None:
        """Makes what is missing. Raises ConfigError when it cannot."""
        self.path = path
        self.instances = path / "instances"
        try:
            self.instances.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"state_dir: cannot use {self.instances}: {error.strerror}") from error

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal"

    def instance_dir(self, instance_id: str) -> Path:
        """Folder of an instance's spec and logs."""
        return self.instances / instance_id

    def identity(self) -> str:
        """A random name of this folder, made when missing: tells two agents of one node id apart."""
        path = self.path / "state_id"
        try:
            if not path.exists():
                replace_file(path, secrets.token_hex(8))
            identity = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"state_dir: {path} is unreadable ({error})") from error
        if not identity:
            raise ConfigError(f"state_dir: {path} is empty; remove it")
        return identity

    def prune(self, known: Collection[str]) -> None:
        """Removes the folders of instances that are not known any more, the newest ones aside."""
        ended: list[tuple[float, Path]] = []
        for folder in self.instances.iterdir():
            # Another call may prune at the same time, and what cannot be removed is in nobody's way.
            with contextlib.suppress(OSError):
                if folder.name not in known:
                    ended.append((folder.stat().st_mtime, folder))
        for _, folder in sorted(ended, reverse=True)[_ENDED_KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Writes the file as a whole or not at all, and syncs it."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Puts the names in a folder on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
