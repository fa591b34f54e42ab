"""A worker's processes: started in a session of their own, awaited without polling, ended as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from services.local_agent.procfs import session_members, stat_of

_ORPHANS_LEAVE_S = 2.0
_KILLED_WITHIN_S = 10.0


class StuckError(Exception):
    """Processes survive SIGKILL (they hang in the kernel); the text names them."""


class WorkerProcess:
    """The leader of a session and everything in it.

    A session, not only a process group: an engine may put its children into groups of their own. While a
    member lives, the kernel gives the session's number to no other process.
    """

    def __init__(self, pid: int, start_time: int, child: subprocess.Popen[bytes] | None = None) -> None:
        """Takes charge of a process; must be called on the event loop.

        Args:
            pid: the leader's; it may be gone already.
            start_time: its start in clock ticks since boot.
            child: set when this process is its parent.
        """
        self.pid = pid
        self.start_time = start_time
        self._child = child
        self._exit = asyncio.ensure_future(self._watch())

    @classmethod
    async def spawn(cls, command: Sequence[str], environ: Mapping[str, str], log: Path) -> WorkerProcess:
        """Starts the command with stdout and stderr appended to the log. Raises OSError."""
        child = await asyncio.to_thread(_spawn, command, environ, log)
        # A child that has died already is a zombie without figures; no other gets its pid until it is reaped.
        stat = stat_of(child.pid)
        return cls(child.pid, stat.start_time if stat else 0, child)

    @property
    def alive(self) -> bool:
        """True until the leader's exit has been noticed."""
        return not self._exit.done()

    async def wait_exit(self) -> str:
        """Returns how the leader ended, e.g. `exit status 3` or `killed by SIGKILL`."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> None:
        """Ends the leader by SIGTERM, or SIGKILL after `grace_s` seconds, and then what it leaves behind.

        Returns when no process of the session is left. Raises StuckError when SIGKILL does not end them.
        """
        if self.alive:
            self._signal_leader(signal.SIGTERM)
            await asyncio.wait({self._exit}, timeout=grace_s)
            if not self.alive and await self._gone_within(_ORPHANS_LEAVE_S):
                return
        deadline = asyncio.get_running_loop().time() + _KILLED_WITHIN_S
        while members := await self._kill():
            if asyncio.get_running_loop().time() > deadline:
                pids = ", ".join(str(pid) for pid in members)
                raise StuckError(f"processes {pids} survive SIGKILL for {_KILLED_WITHIN_S:g} s")
        await self.wait_exit()

    async def _watch(self) -> str:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                stat = stat_of(self.pid)
                if self._child is not None or (stat is not None and stat.start_time == self.start_time):
                    await _readable([pidfd], None)
            finally:
                os.close(pidfd)
        if self._child is None:
            return "exit status unknown: started by an earlier agent"
        return describe_exit(self._child.wait())

    def _signal_leader(self, number: signal.Signals) -> None:
        stat = stat_of(self.pid)
        if stat is not None and stat.start_time == self.start_time:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _gone_within(self, timeout_s: float) -> bool:
        with _opened(await self._members()) as pidfds:
            await _readable(pidfds, timeout_s)
        return not await self._members()

    async def _kill(self) -> list[int]:
        """SIGKILLs every member, waits for them for at most a second, returns whom it found."""
        members = await self._members()
        with _opened(members) as pidfds:
            for pidfd in pidfds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await _readable(pidfds, 1.0)
        return members

    async def _members(self) -> list[int]:
        leader = stat_of(self.pid)
        if leader is not None and leader.start_time != self.start_time:
            return []  # The number belongs to a stranger, so the session ended before.
        return [stat.pid for stat in await asyncio.to_thread(session_members, self.pid)]


def describe_exit(status: int) -> str:
    """Text for a return code of subprocess: negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _spawn(command: Sequence[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@contextlib.contextmanager
def _opened(pids: Sequence[int]) -> Iterator[list[int]]:
    """Descriptors of those processes that are still there."""
    pidfds: list[int] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
        yield pidfds
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


async def _readable(fds: Sequence[int], timeout_s: float | None) -> None:
    """Waits until all descriptors are readable (their processes have ended) or the time has passed."""
    loop = asyncio.get_running_loop()
    waiting = []
    for fd in fds:
        ended = loop.create_future()
        loop.add_reader(fd, _resolve, ended)
        waiting.append(ended)
    try:
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
    finally:
        for fd in fds:
            loop.remove_reader(fd)


def _resolve(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
