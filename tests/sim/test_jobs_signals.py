"""A comparison that is told to end: its processes end with it, whoever got the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"


def children_of(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def workers_of(pid: int) -> list[int]:
    """Its spawned children."""
    found = []
    for child in children_of(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        if b"spawn_main" in command:
            found.append(child)
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_a_comparison_ends_its_processes_too(number: signal.Signals, status: int) -> None:
    # What a shell puts into the background has SIGINT ignored, and so has whatever that starts.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from chiron.cli.main import main; main()"
    options = ["compare", str(TINY), "--policies", "chiron,llumnix", "--seeds", "500", "--jobs", "2"]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, "sim", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as running:
        try:
            wait_until(lambda: len(workers_of(running.pid)) == 2)
            running.send_signal(number)
            # Both streams end only when no process holds them any more.
            _, told = running.communicate(timeout=30)
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)
            raise

    assert running.returncode == status
    assert b"Traceback" not in told


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
