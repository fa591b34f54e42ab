"""The worker processes of a node, as /proc tells: also those that no living agent knows of."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker process that lived when it was looked for."""

    instance_id: str
    model: str
    node_id: str
    incarnation: int
    pid: int
    """Also the id of its process group, which holds the engine's own processes."""
    start_time: int
    """Clock ticks from boot; with the pid it names a process for good."""

    @property
    def alive(self) -> bool:
        """False once the process is gone, even when another one has taken its pid."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.start_time

    def kill(self) -> None:
        """Ends the whole process group at once, as a crash would; a process that is gone is left alone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def find_workers(state_dir: Path, node_id: str) -> list[WorkerProcess]:
    """The workers that agents with this `state_dir` have started and that live, by instance."""
    below = f"spec_file={state_dir.absolute()}/instances/"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # It has ended, or is another user's.
            continue
        stat = _stat(int(entry.name)) if any(part.startswith(below) for part in command) else None
        # What a worker forks has the same command line, but leads no session.
        if stat is None or stat[0] != int(entry.name):
            continue
        settings = dict(part.split("=", 1) for part in command if "=" in part)
        found.append(
            WorkerProcess(
                instance_id=settings["instance_id"],
                model=_model(Path(settings["spec_file"])),
                node_id=node_id,
                incarnation=int(settings["incarnation"]),
                pid=int(entry.name),
                start_time=stat[1],
            )
        )
    return sorted(found, key=lambda worker: (worker.instance_id, worker.incarnation))


def _model(spec_file: Path) -> str:
    try:
        return str(json.loads(spec_file.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError):
        return ""


def _stat(pid: int) -> tuple[int, int] | None:
    """Session, and ticks from boot to the start; None when it is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else (int(fields[3]), int(fields[19]))
