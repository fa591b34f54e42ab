from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from chiron.cluster.workers import WorkerProcess, find_workers

SLEEPER = "import os, sys; os.fork() if 'fork' in sys.argv else 0; print('up', flush=True); sys.stdin.read()"


class Start(Protocol):
    def __call__(self, state_dir: Path, *, forks: bool = False) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(state_dir: Path, *, forks: bool = False) -> subprocess.Popen[bytes]:
        folder = state_dir / "instances" / "toy-1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps({"name": "toy"}))
        settings = ("instance_id=toy-1", "incarnation=7", f"spec_file={folder}/spec.json")
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, *settings, "fork" if forks else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_worker_of_the_state_folder_is_found_by_its_command_line(tmp_path: Path, start: Start) -> None:
    pid = start(tmp_path / "node-0").pid

    assert find_workers(tmp_path / "node-0", "node-0") == [
        WorkerProcess("toy-1", "toy", "node-0", incarnation=7, pid=pid, start_time=start_time(pid))
    ]
    assert find_workers(tmp_path / "node", "node") == []


def test_what_a_worker_forks_is_no_worker(tmp_path: Path, start: Start) -> None:
    pid = start(tmp_path, forks=True).pid

    assert [worker.pid for worker in find_workers(tmp_path, "node-0")] == [pid]


def test_killing_a_worker_ends_its_process(tmp_path: Path, start: Start) -> None:
    process = start(tmp_path)
    (worker,) = find_workers(tmp_path, "node-0")

    worker.kill()

    assert process.wait(10) == -signal.SIGKILL
    assert find_workers(tmp_path, "node-0") == []


def test_a_stranger_with_the_same_pid_is_not_killed(tmp_path: Path, start: Start) -> None:
    process = start(tmp_path)

    WorkerProcess("toy-1", "toy", "node-0", 7, process.pid, start_time(process.pid) - 1).kill()

    assert process.poll() is None
