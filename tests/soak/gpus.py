"""The run's processes, and who of them holds which GPU: read from /proc, whatever the agents believe."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tests.soak.engine import NODE

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_INTERVAL_S = 0.2
_YOUNG_S = 2.0
"""Between fork and exec a process shows its parent's environment, so that of a young one is read again."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process; pid and start time name it for good."""

    pid: int
    start_time: int
    """Clock ticks from boot."""
    session: int
    state: str
    """As in /proc/PID/stat."""

    @property
    def lives(self) -> bool:
        """False once it is gone, even when another one has taken its pid."""
        now = stat(self.pid)
        return now is not None and now.start_time == self.start_time


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two process groups that held one GPU at the same instant."""

    node: str
    gpu: str
    sessions: tuple[int, int]


class Processes:
    """The live processes whose environment holds a mark."""

    def __init__(self, mark: str) -> None:
        """`mark` is a NAME=VALUE."""
        self._mark = mark.encode()
        self._known: dict[tuple[int, int], dict[str, str] | None] = {}

    def live(self) -> list[tuple[Process, dict[str, str]]]:
        """Each of them with its environment; one that only waits to be reaped is gone."""
        old = (time.clock_gettime(time.CLOCK_BOOTTIME) - _YOUNG_S) * _TICKS_PER_S
        found, known = [], {}
        for name in os.listdir(_PROC):
            if not name.isdigit() or (process := stat(int(name))) is None:
                continue
            key = process.pid, process.start_time
            environ = self._known[key] if key in self._known else self._environ(process.pid)
            if process.start_time < old:
                known[key] = environ
            if environ is not None:
                found.append((process, environ))
        self._known = known
        return found

    def _environ(self, pid: int) -> dict[str, str] | None:
        try:
            items = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return None
        if self._mark not in items:
            return None
        return dict(item.decode(errors="replace").split("=", 1) for item in items if b"=" in item)


class GpuWatch:
    """Looks again and again for GPUs with two holders."""

    def __init__(self, processes: Processes, log: Callable[[str], None]) -> None:
        self._processes = processes
        self._log = log
        self.conflicts: set[Conflict] = set()

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            for conflict in find_conflicts(self._processes.live()) - self.conflicts:
                self.conflicts.add(conflict)
                self._log(
                    f"GPU {conflict.gpu} of {conflict.node} is held by sessions "
                    f"{conflict.sessions[0]} and {conflict.sessions[1]}"
                )
            await asyncio.sleep(_INTERVAL_S)


def find_conflicts(live: Iterable[tuple[Process, dict[str, str]]]) -> set[Conflict]:
    """GPUs that two sessions hold now.

    A look takes some milliseconds, in which one may end and another begin: both must live after it.
    """
    holders: dict[tuple[str, str], dict[int, list[Process]]] = {}
    for process, environ in live:
        for gpu in filter(None, environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
            sessions = holders.setdefault((environ[NODE], gpu), {})
            sessions.setdefault(process.session, []).append(process)
    found = set()
    for (node, gpu), sessions in holders.items():
        for one, other in combinations(sorted(sessions), 2):
            if all(any(process.lives for process in sessions[each]) for each in (one, other)):
                found.add(Conflict(node, gpu, (one, other)))
    return found


def stat(pid: int) -> Process | None:
    """The process's figures; None when it is gone or only waits to be reaped."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), session=int(fields[3]), state=fields[0])
