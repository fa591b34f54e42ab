"""A minute of the soak test, and that nothing of it is left however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.soak.gpus import Processes
from tests.soak.report import ERRORS
from tests.soak.until import until

COMMAND = (sys.executable, "-m", "tests.soak")
SMALLEST = ("--models=1", "--replicas=1", "--agents=1", "--routers=1", "--controllers=1", "--etcd=1")
ENVIRON = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}


@pytest.mark.timeout(600)
async def test_a_minute_of_faults_breaks_nothing(tmp_path: Path) -> None:
    # Its faults roll one model, spoil the other and compact etcd's history.
    run = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--seconds=60",
        "--faults=20",
        "--seed=6",
        "--interactive=1",
        "--batch=0.5",
        f"--directory={tmp_path}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRON,
    )
    try:
        out, err = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
    diary = (tmp_path / "faults.log").read_text()

    assert out.count(b"\n") == 1, err.decode()
    report = json.loads(out)
    assert {column: report[column] for column in ERRORS} == dict.fromkeys(ERRORS, 0), diary
    assert run.returncode == 0
    assert (report["faults"] + report["skipped"], report["seed"]) == (20, 6)
    assert report["faults"] > 10
    assert report["finished"] > 0
    ends = ("finished", "cancelled", "refused", "not_resumed", "lost")
    assert report["requests"] == sum(report[end] for end in ends)


@asynccontextmanager
async def smallest_run(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Processes]]:
    """A run on the smallest cluster, once it is ready, with one of its processes frozen."""
    run = await asyncio.create_subprocess_exec(
        *COMMAND,
        *SMALLEST,
        "--seconds=600",
        "--faults=0",
        f"--directory={folder}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=ENVIRON,
    )
    log = folder / "faults.log"

    async def ready() -> bool:
        return log.exists() and "the cluster is ready" in log.read_text()

    try:
        assert await until(ready, 50.0)
        match = re.search(r"CHIRON_SOAK_RUN=\w+", log.read_text())
        assert match is not None
        processes = Processes(match[0])
        [agent] = [process for process, environ in processes.live() if _is_agent(process.pid)]
        os.kill(agent.pid, signal.SIGSTOP)
        yield run, processes
    finally:
        if run.returncode is None:
            run.kill()
        await run.wait()


def _is_agent(pid: int) -> bool:
    return b"services.local_agent" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_a_run_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    async with smallest_run(tmp_path) as (run, processes):
        run.send_signal(number)
        status = await run.wait()

    async def none_left() -> bool:
        return not processes.live()

    assert status == (-number if number is signal.SIGKILL else 130)
    assert await until(none_left, 10.0)


def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=50, check=False, env=ENVIRON
    )


def test_a_dry_run_prints_the_seeds_schedule_and_starts_nothing(tmp_path: Path) -> None:
    asked = ("--dry-run", "--seconds=900", "--faults=300", f"--directory={tmp_path / 'none'}")
    first, again, other = (
        printed(*asked, "--seed=7"),
        printed(*asked, "--seed=7"),
        printed(*asked, "--seed=8"),
    )
    assert first.stdout == again.stdout != other.stdout
    assert len([json.loads(line) for line in first.stdout.splitlines()]) == 300
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds=10", "--faults=500"), "500 faults do not fit into 10 s"),
        (("--routers=0",), "routers: must be at least 1, not 0"),
        (("--seconds=-1",), "seconds: must be above 0"),
    ],
)
def test_a_bad_use_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = printed(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
