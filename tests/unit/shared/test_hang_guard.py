"""A test that hangs ends with a report of where it waits, on every loop; runs of pytest show it here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import asyncio
import uvloop
from tests.support import hang_guard
from tests.support.hang_guard import *

def pytest_asyncio_loop_factories(config, item):
    return {"loop": LOOP.new_event_loop}
"""
WAITING = re.compile(r"^> +await asyncio.Event\(\).wait\(\)  # here$", re.MULTILINE)
NEXT = "\n\ndef test_the_next_one():\n    pass\n"
WAITS = """
import asyncio, pathlib

async def test_waits():
    background = asyncio.create_task(asyncio.Event().wait(), name="in the background")
    try:
        await asyncio.Event().wait()  # here
    finally:
        background.cancel()
        pathlib.Path("cleaned up").touch()
"""
FIXTURE = """
import asyncio, pytest

@pytest.fixture
async def slow():
    await asyncio.Event().wait()  # here

def test_never_begins(slow):
    pass
"""
DEAF = """
import asyncio

async def test_deaf():
    while True:
        try:
            await asyncio.Event().wait()  # here
        except asyncio.CancelledError:
            pass
"""
BLOCKED = """
import threading

def test_blocked():
    threading.Event().wait()  # here
"""
SLOW = """
import asyncio

async def test_slow():
    await asyncio.sleep(1.5)
"""


def run(
    folder: Path, test: str, *, loop: str = "uvloop", grace_s: float = 30.0, patience: float = 1.0
) -> tuple[int, str]:
    """The exit status and the output of a run with one test that hangs and one after it."""
    settings = f"hang_guard.GRACE_S = {grace_s}\nhang_guard.patience = lambda: {patience}\n"
    (folder / "conftest.py").write_text(CONFTEST.replace("LOOP", loop) + settings)
    (folder / "test_hanging.py").write_text(test + NEXT)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    options = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function", "timeout=0.5"]
    for option in options:
        command += ["-o", option]
    done = subprocess.run(
        [*command, f"--rootdir={folder}", "-c", "/dev/null"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_test_that_waits_fails_cleans_up_and_the_next_one_runs(tmp_path: Path, loop: str) -> None:
    status, output = run(tmp_path, WAITS, loop=loop)
    assert status == 1, output
    assert "1 failed, 1 passed" in output
    assert "Timeout (>0.5s)" in output
    assert WAITING.search(output), output
    assert "in the background" in output
    assert (tmp_path / "cleaned up").exists()


def test_so_does_one_whose_fixture_waits(tmp_path: Path) -> None:
    status, output = run(tmp_path, FIXTURE)
    assert status == 1, output
    assert "1 passed, 1 error" in output
    assert WAITING.search(output), output


@pytest.mark.parametrize("test", [DEAF, BLOCKED], ids=["deaf", "blocked"])
def test_what_cannot_be_ended_ends_the_run_with_every_thread_s_stack(tmp_path: Path, test: str) -> None:
    status, output = run(tmp_path, test, grace_s=0.5)
    assert status == 1, output
    if test == DEAF:
        assert "Timeout (0:00:01)!" in output
        assert "in pytest_pyfunc_call" in output
    else:
        assert "1 failed, 1 passed" in output


def test_the_suite_has_the_guard() -> None:
    from tests import conftest
    from tests.support import hang_guard

    hooks = [name for name in vars(hang_guard) if name.startswith("pytest_") and name != "pytest_timeout"]
    assert hooks
    assert {getattr(conftest, name) for name in hooks} == {getattr(hang_guard, name) for name in hooks}


def test_a_busy_machine_is_given_more_time(tmp_path: Path) -> None:
    status, output = run(tmp_path, SLOW, patience=20.0)
    assert status == 0, output
