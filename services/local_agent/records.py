"""What outlives the agent: a small file per instance that says which process holds which GPUs, and the term.

Files are replaced atomically and synced, so that a crash leaves the old or the new content.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from chiron.config import ConfigError

_ENDED_KEPT = 20


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One started worker. With pid 0 the agent was about to start it."""

    instance_id: str
    model: str
    generation: int
    spec_version: int
    incarnation: int
    gpus: tuple[int, ...]
    boot_id: str
    pid: int = 0
    start_time: int = 0
    """Clock ticks since boot; guards against a reused pid."""


class StateDir:
    """The files of one agent. All methods block for as long as the disk takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._instances = path / "instances"
        self._instances.mkdir(parents=True, exist_ok=True, mode=0o700)

    def instance_dir(self, instance_id: str) -> Path:
        """Folder of an instance's record, spec and logs; made when missing."""
        folder = self._instances / instance_id
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def identity(self) -> str:
        """A random name of this folder, made when missing: tells two agents of one node id apart."""
        path = self.path / "state_id"
        if not path.exists():
            replace_file(path, secrets.token_hex(8))
        try:
            identity = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"state_dir: {path} is unreadable ({error})") from error
        if not identity:
            raise ConfigError(f"state_dir: {path} is empty; remove it")
        return identity

    def read_term(self) -> int:
        """The highest term seen; 0 before any."""
        try:
            return int(json.loads((self.path / "term.json").read_text())["highest_term"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"state_dir: {self.path / 'term.json'} is unreadable ({error})") from error

    def write_term(self, term: int) -> None:
        """Keeps the highest term across restarts."""
        replace_file(self.path / "term.json", json.dumps({"highest_term": term}))

    def write_record(self, record: InstanceRecord) -> None:
        """Keeps one worker's record."""
        path = self.instance_dir(record.instance_id) / "record.json"
        replace_file(path, json.dumps(asdict(record), indent=1))

    def read_records(self) -> list[InstanceRecord]:
        """Every record there is.

        Raises ConfigError for one that cannot be read: its worker may live and hold unknown GPUs.
        """
        found = []
        for path in sorted(self._instances.glob("*/record.json")):
            try:
                fields = json.loads(path.read_text())
                fields["gpus"] = tuple(fields["gpus"])
                found.append(InstanceRecord(**fields))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"state_dir: {path} is unreadable ({error}); stop its worker if it runs, then remove it"
                ) from error
        return found

    def remove_record(self, instance_id: str) -> None:
        """Forgets a worker that is gone; its logs stay while they are among the newest."""
        (self._instances / instance_id / "record.json").unlink(missing_ok=True)
        self._prune()

    def _prune(self) -> None:
        ended: list[tuple[float, Path]] = []
        for folder in self._instances.iterdir():
            # Several instances may end at once, and each of them prunes.
            with contextlib.suppress(FileNotFoundError):
                if not (folder / "record.json").exists():
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
