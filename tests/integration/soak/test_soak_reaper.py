"""Whatever becomes of a soak test's own process, nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tests.soak.gpus import Processes
from tests.soak.until import until

MARK = f"CHIRON_SOAK_RUN={uuid.uuid4().hex}"


@pytest.fixture
def run() -> Iterator[subprocess.Popen[bytes]]:
    """A run: its reaper, a process that can be frozen, and one whose parent has gone."""
    code = (
        "import os, subprocess, sys, time\n"
        f"reaper = [sys.executable, '-m', 'tests.soak.reaper', str(os.getpid()), '{MARK}']\n"
        "subprocess.Popen(reaper, start_new_session=True)\n"
        f"name, _, value = '{MARK}'.partition('=')\n"
        "marked = {**os.environ, name: value}\n"
        "subprocess.Popen(['sleep', '60'], env=marked, start_new_session=True)\n"
        "subprocess.run(['sh', '-c', 'sleep 60 >/dev/null &'], env=marked, start_new_session=True)\n"
        "print(flush=True)\n"
        "time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    yield run
    run.kill()
    run.wait()
    run.stdout.close()


async def test_the_death_of_the_run_ends_frozen_and_orphaned_processes_too(
    run: subprocess.Popen[bytes],
) -> None:
    marked = Processes(MARK)

    async def two() -> bool:
        return len(marked.live()) == 2

    async def none() -> bool:
        return not marked.live()

    assert await until(two, 10.0)
    os.kill(marked.live()[0][0].pid, signal.SIGSTOP)
    run.kill()
    assert await until(none, 10.0)
