"""Ends a test that hangs: in time with its traceback, and at the latest with the whole run.

pytest-timeout raises out of a signal handler. An event loop catches what its callbacks raise: under uvloop
always, under asyncio where another task happens to run; the test then waits on. Here the handler cancels the
task that runs the test instead, so the report shows the line it waits in and its clean-up runs. What does
not end even so is ended after a grace, with every thread's stack on stderr. A busy machine has more time.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import io
import os
import signal
import sys
import threading
import time
from typing import TextIO

import pytest
import pytest_timeout

from tests.support.patience import patience

GRACE_S = 30.0
"""From a test's time limit to the end of the process."""
_STDERR = pytest.StashKey[TextIO]()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the real stderr: while tests run, pytest captures the file descriptor."""
    config.stash[_STDERR] = os.fdopen(os.dup(sys.__stderr__.fileno()), "w")  # type: ignore[union-attr]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives stderr back."""
    if _STDERR in config.stash:
        faulthandler.cancel_dump_traceback_later()
        config.stash[_STDERR].close()
        del config.stash[_STDERR]


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """Takes the place of pytest-timeout's own signal; None leaves it to that."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    began, stderr = time.monotonic(), item.config.stash[_STDERR]

    def wait(length_s: float) -> None:
        if not pytest_timeout.is_debugging():
            faulthandler.dump_traceback_later(length_s + GRACE_S, exit=True, file=stderr)
        signal.setitimer(signal.ITIMER_REAL, length_s)

    def expired(signum: int, frame: object) -> None:
        more_s = settings.timeout * patience() - (time.monotonic() - began)
        if more_s > 0:
            wait(more_s)
        else:
            _expired(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, expired)
    wait(settings.timeout)
    return True


def pytest_runtest_logfinish() -> None:
    """Also a failed test's clean-up is over now."""
    faulthandler.cancel_dump_traceback_later()


def pytest_enter_pdb() -> None:
    """Who debugs has time."""
    faulthandler.cancel_dump_traceback_later()


def _expired(item: pytest.Item, settings: pytest_timeout.Settings) -> None:
    loop = asyncio._get_running_loop()
    if loop is None:
        pytest_timeout.timeout_sigalrm(item, settings)
        return
    if pytest_timeout.is_debugging():
        return
    tasks = asyncio.all_tasks(loop)
    stacks = io.StringIO()
    for task in tasks:
        try:
            task.print_stack(file=stacks)
        except TypeError:
            # Frames of compiled coroutines may have no line number, which the standard library asks for.
            print(f"{task!r}: no stack", file=stacks)
    item.add_report_section("timeout", "tasks", stacks.getvalue())
    code = getattr(inspect.unwrap(getattr(item, "obj", None) or _nothing), "__code__", None)
    ours = [task for task in tasks if getattr(task.get_coro(), "cr_code", None) is code]
    for task in ours or tasks:
        # Not at once: a loop that sleeps in its selector would not look before something else wakes it.
        loop.call_soon_threadsafe(task.cancel, pytest_timeout.PYTEST_FAILURE_MESSAGE % settings.timeout)


def _nothing() -> None: ...
