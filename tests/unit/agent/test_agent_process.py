"""Real child processes: how they end, and that nothing of them is left."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.local_agent import live_worker, procfs
from services.local_agent.live_worker import LiveWorker
from services.local_agent.process import WorkerProcess
from services.local_agent.ticket_keys import TicketKeys
from services.local_agent.worker_link import WorkerLink
from tests.support.wait import eventually

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
children = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]),
    subprocess.Popen([sys.executable, "-c", "import os, time; os.setpgid(0, 0); time.sleep(600)"]),
]
print("up", flush=True)
time.sleep(600)
"""
WRITER = """
import os, time
print("x" * 200, flush=True)
while not os.path.exists({go!r}):
    time.sleep(0.02)
print("last", flush=True)
time.sleep(600)
"""


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Starter]:
    starter = Starter(tmp_path / "log")
    yield starter
    for process in starter.processes:
        await process.stop(0.0)


class Starter:
    def __init__(self, log: Path) -> None:
        self.log = log
        self.processes: list[WorkerProcess] = []

    async def __call__(self, code: str) -> WorkerProcess:
        process = await WorkerProcess.spawn([sys.executable, "-c", code], os.environ, self.log)
        self.processes.append(process)
        return process

    async def up(self) -> None:
        await eventually(lambda: "up" in self.log.read_text(), what="the child runs")


async def test_an_exit_is_told_with_its_status(started: Starter) -> None:
    process = await started("import sys; print('last words'); sys.exit(3)")
    assert await process.wait_exit() == "exit status 3"
    assert not process.alive
    assert started.log.read_text() == "last words\n"


async def test_a_signal_is_told_by_name(started: Starter) -> None:
    process = await started("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert await process.wait_exit() == "killed by SIGKILL"


async def test_a_command_that_cannot_start_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await WorkerProcess.spawn(["/no/such/python"], os.environ, tmp_path / "log")


async def test_a_worker_has_a_session_of_its_own(started: Starter) -> None:
    process = await started("print('up', flush=True); import time; time.sleep(600)")
    stat = procfs.stat_of(process.pid)
    assert stat is not None
    assert stat.session == process.pid != os.getsid(0)


async def test_the_log_of_a_running_worker_is_bounded_and_the_worker_writes_on(
    started: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_worker, "_LOG_CHECK_S", 0.02)
    process = await started(WRITER.format(go=str(tmp_path / "go")))
    log = tmp_path / "log"
    worker = LiveWorker(
        process,
        WorkerLink(tmp_path / "none.sock", 1),
        log,
        log_bytes=100,
        statistics_interval_ms=1000,
        keys=TicketKeys(),
        on_statistics=lambda _: None,
        on_exit=lambda _: None,
    )
    await eventually(lambda: (tmp_path / "log.1").exists() and log.read_text() == "")
    (tmp_path / "go").touch()
    await eventually(lambda: log.read_text() == "last\n")
    assert (tmp_path / "log.1").read_text() == "x" * 200 + "\n"
    await worker.unfollow()


async def test_stop_asks_by_sigterm_first(started: Starter) -> None:
    process = await started(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    await started.up()
    await process.stop(30.0)
    assert await process.wait_exit() == "exit status 0"


async def test_stop_kills_what_ignores_sigterm(started: Starter) -> None:
    process = await started(STUBBORN)
    await started.up()
    await process.stop(0.2)
    assert await process.wait_exit() == "killed by SIGKILL"


async def test_stop_returns_when_the_children_are_gone_too_whatever_their_group(started: Starter) -> None:
    process = await started(PARENT)
    await started.up()
    await eventually(lambda: len(procfs.session_members(process.pid)) == 3)
    await process.stop(0.2)
    assert procfs.session_members(process.pid) == []


async def test_stop_finds_children_that_outlive_the_leader(started: Starter) -> None:
    process = await started(PARENT)
    await started.up()
    await eventually(lambda: len(procfs.session_members(process.pid)) == 3)
    os.kill(process.pid, 9)
    assert await process.wait_exit() == "killed by SIGKILL"
    assert len(procfs.session_members(process.pid)) == 2
    await process.stop(0.2)
    assert procfs.session_members(process.pid) == []


async def test_a_worker_of_an_earlier_agent_is_followed_and_stopped(started: Starter) -> None:
    process = await started(PARENT)
    await started.up()
    attached = WorkerProcess(process.pid, process.start_time)
    assert attached.alive
    await attached.stop(0.2)
    assert await attached.wait_exit() == "exit status unknown: started by an earlier agent"
    assert procfs.session_members(process.pid) == []


async def test_a_stranger_with_the_same_pid_is_left_alone(started: Starter) -> None:
    process = await started("print('up', flush=True); import time; time.sleep(600)")
    await started.up()
    mistaken = WorkerProcess(process.pid, process.start_time - 1)
    await mistaken.stop(0.2)
    assert process.alive
