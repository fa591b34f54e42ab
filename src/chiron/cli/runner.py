"""Runs a command: Ctrl-C cancels it, and every expected failure becomes one line and an exit status."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import typer

from chiron.client import ChironError
from chiron.cluster import AddressError, AdminError, ModelFailedError, StartError
from chiron.cluster.vllm_cpu import ModelUnavailableError
from chiron.config import ConfigError

EXIT_FAILED = 1
EXIT_BAD_START = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


class CliError(Exception):
    """What a command cannot do, in one line.

    Attributes:
        status: exit status.
    """

    def __init__(self, message: str, status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.status = status


_EXPECTED = (
    CliError,
    ConfigError,
    StartError,
    AdminError,
    ModelFailedError,
    ModelUnavailableError,
    ChironError,
)


def execute(work: Coroutine[Any, Any, int]) -> None:
    """Runs the command's coroutine and ends the process with its status."""
    try:
        status = asyncio.run(_interruptible(work))
    except _EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        status = _status(error)
    except asyncio.CancelledError:
        status = EXIT_INTERRUPTED
    raise typer.Exit(status)


def _status(error: Exception) -> int:
    if isinstance(error, CliError):
        return error.status
    refused = isinstance(error, (ConfigError, AddressError)) or (
        isinstance(error, StartError) and error.bad_start
    )
    return EXIT_BAD_START if refused else EXIT_FAILED


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    # Each signal cancels once: the first starts an orderly end, the second cuts that short.
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    return await task
