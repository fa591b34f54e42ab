"""What /proc tells about processes: who is in a session, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GONE = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/<pid>/stat that the agent uses."""

    pid: int
    session: int
    start_time: int
    """Clock ticks from boot to the start; with the pid it names a process for good until the next boot."""


def boot_id() -> str:
    """Differs after each boot, so that ticks since boot of an earlier one are not compared."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat_of(pid: int) -> ProcessStat | None:
    """The process's figures; None when it is gone or only waits to be reaped."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in _GONE:
        return None
    return ProcessStat(pid, session=int(fields[3]), start_time=int(fields[19]))


def session_members(session: int) -> list[ProcessStat]:
    """Every live process of a session, in whatever process group. Reads all of /proc: some milliseconds."""
    found = (stat_of(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [stat for stat in found if stat is not None and stat.session == session]


def find_by_argument(argument: str) -> ProcessStat | None:
    """The session leader whose command line holds the argument."""
    wanted = argument.encode()
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        stat = stat_of(int(entry.name)) if wanted in arguments else None
        if stat is not None and stat.session == stat.pid:
            return stat
    return None
