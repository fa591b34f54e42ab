"""What /proc tells about processes: who is in a session, and since when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GONE = frozenset("ZX")
_RESIDENT = ("RssAnon:", "RssShmem:")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/<pid>/stat that the agent uses."""

    pid: int
    session: int
    start_time: int
    """Clock ticks from boot to the start; with the pid it names a process for good until the next boot."""


@dataclass(frozen=True, slots=True)
class FoundWorker:
    """A worker process as /proc shows it."""

    pid: int
    start_time: int
    settings: Mapping[str, str]
    """Its command line: instance_id, incarnation, spec_version, role, spec_file, socket."""
    devices: str
    """Its CUDA_VISIBLE_DEVICES."""


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


def resident_bytes(session: int) -> int:
    """Memory that the processes of a session have for themselves or share, files aside, in bytes."""
    total = 0
    for member in session_members(session):
        try:
            lines = (_PROC / str(member.pid) / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        figures = [line.split() for line in lines if line.startswith(_RESIDENT)]
        total += sum(int(figure[1]) * 1024 for figure in figures)
    return total


def memory_bytes() -> int:
    """The host's memory."""
    text = (_PROC / "meminfo").read_text()
    return int(text[text.index("MemTotal:") :].split()[1]) * 1024


def workers_below(instances: Path) -> Iterator[FoundWorker]:
    """The workers whose files lie below a folder, whoever started them. Reads all of /proc."""
    below = f"spec_file={instances}/"
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if not any(argument.startswith(below) for argument in command):
            continue
        stat = stat_of(int(entry.name))
        # What a worker forks has the same command line, but leads no session.
        if stat is not None and stat.session == stat.pid:
            settings = dict(argument.split("=", 1) for argument in command if "=" in argument)
            yield FoundWorker(stat.pid, stat.start_time, settings, _variable(entry, "CUDA_VISIBLE_DEVICES"))


def _variable(entry: Path, name: str) -> str:
    """A variable of the environment that a process was started with; empty without one."""
    wanted = f"{name}=".encode()
    try:
        variables = (entry / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    values = [variable.removeprefix(wanted) for variable in variables if variable.startswith(wanted)]
    return values[0].decode(errors="replace") if values else ""
