"""Which processes the soak test takes for two holders of one GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.soak.engine import NODE
from tests.soak.gpus import Conflict, Processes, find_conflicts, stat

MARK = f"CHIRON_SOAK_RUN={uuid.uuid4().hex}"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that says when it runs, in a session of its own, with GPUs of a node."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(gpus: str, node: str = "n", *, mark: str = MARK, children: int = 0) -> subprocess.Popen[bytes]:
        name, _, value = mark.partition("=")
        code = (
            "import subprocess, sys, time\n"
            "wait = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
            f"children = [subprocess.Popen(wait) for _ in range({children})]\n"
            "print(flush=True)\n"
            "time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            env={**os.environ, name: value, "CUDA_VISIBLE_DEVICES": gpus, NODE: node},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def conflicts() -> set[Conflict]:
    return find_conflicts(Processes(MARK).live())


def test_two_sessions_on_one_gpu_are_a_conflict(start: Start) -> None:
    one, other = start("0,1"), start("1")
    sessions = sorted((one.pid, other.pid))
    assert conflicts() == {Conflict("n", "1", (sessions[0], sessions[1]))}


def test_a_frozen_holder_still_holds(start: Start) -> None:
    start("0").send_signal(signal.SIGSTOP)
    start("0")
    assert len(conflicts()) == 1


def test_processes_of_one_session_share_their_gpus(start: Start) -> None:
    start("0", children=2)
    assert conflicts() == set()


def test_other_gpus_other_nodes_and_other_runs_are_no_conflict(start: Start) -> None:
    start("0")
    start("1")
    start("0", "m")
    start("0", mark="CHIRON_SOAK_RUN=another")
    start("")
    assert conflicts() == set()


def test_a_child_that_outlives_its_session_leader_still_holds(start: Start) -> None:
    leader = start("0", children=1)
    leader.kill()
    leader.wait()
    start("0")
    assert len(conflicts()) == 1


def test_who_ends_while_one_looks_is_no_conflict(start: Start) -> None:
    one, _ = start("0"), start("0")
    seen = Processes(MARK).live()
    one.kill()
    one.wait()
    assert find_conflicts(seen) == set()


def test_what_only_waits_to_be_reaped_is_gone(start: Start) -> None:
    process = start("0")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert stat(process.pid) is None
    assert Processes(MARK).live() == []
