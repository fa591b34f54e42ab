from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiron.cluster.workers import WorkerProcess, find_workers


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield process
    process.kill()
    process.communicate()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def record(state_dir: Path, pid: int, started: int) -> None:
    folder = state_dir / "instances" / "toy-1"
    folder.mkdir(parents=True)
    fields = {"instance_id": "toy-1", "model": "toy", "incarnation": 7, "pid": pid, "start_time": started}
    (folder / "record.json").write_text(json.dumps(fields))


def test_a_recorded_process_that_lives_is_a_worker(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    started = start_time(sleeper.pid)
    record(tmp_path, sleeper.pid, started)

    assert find_workers(tmp_path, "node-0") == [
        WorkerProcess("toy-1", "toy", "node-0", incarnation=7, pid=sleeper.pid, start_time=started)
    ]


def test_killing_a_worker_ends_its_process(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(tmp_path, sleeper.pid, start_time(sleeper.pid))
    (worker,) = find_workers(tmp_path, "node-0")

    worker.kill()

    assert sleeper.wait(10) == -signal.SIGKILL
    assert find_workers(tmp_path, "node-0") == []


def test_a_stranger_with_the_recorded_pid_is_no_worker_and_is_not_killed(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    earlier = start_time(sleeper.pid) - 1
    record(tmp_path, sleeper.pid, earlier)

    assert find_workers(tmp_path, "node-0") == []
    WorkerProcess("toy-1", "toy", "node-0", 7, sleeper.pid, earlier).kill()
    assert sleeper.poll() is None


def test_a_worker_that_is_about_to_start_is_none_yet(tmp_path: Path) -> None:
    record(tmp_path, 0, 0)

    assert find_workers(tmp_path, "node-0") == []
