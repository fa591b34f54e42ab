"""The worker processes of a node, as its agent's records and /proc tell."""

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
        return _start_time(self.pid) == self.start_time

    def kill(self) -> None:
        """Ends the whole process group at once, as a crash would; a process that is gone is left alone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def find_workers(state_dir: Path, node_id: str) -> list[WorkerProcess]:
    """The workers that an agent with this `state_dir` has started and that live."""
    found = []
    for path in sorted(state_dir.glob("instances/*/record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # The worker has ended meanwhile.
            continue
        worker = WorkerProcess(
            instance_id=record["instance_id"],
            model=record["model"],
            node_id=node_id,
            incarnation=record["incarnation"],
            pid=record["pid"],
            start_time=record["start_time"],
        )
        if worker.pid and worker.alive:
            found.append(worker)
    return found


def _start_time(pid: int) -> int | None:
    """Ticks from boot to the process's start; None when it is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
