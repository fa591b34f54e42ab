"""Runs the `chiron` command as its users do, and finds every process that came of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.patience import patience

_COMMAND = (sys.executable, "-c", "from chiron.cli.main import main; main()")
_MARK = "CHIRON_TEST_RUN"


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


async def chiron(*arguments: str, stdin: str = "", **variables: str) -> Result:
    """Runs a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
    )
    try:
        out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return Result(process.returncode or 0, out.decode(), err.decode())


def simulate(
    *arguments: object, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Result:
    """Runs `chiron sim` to its end, in a folder of its own modules, with further environment variables."""
    done = subprocess.run(
        [sys.executable, "-P", *_COMMAND[1:], "sim", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50 * patience(),
        check=False,
        cwd=folder,
        env={**os.environ, **(variables or {})},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def only_error(result: Result, *statuses: int) -> str:
    """The one line that a command told before it ended with one of these statuses, without `error: `."""
    assert result.status in statuses, result
    assert result.stderr.startswith("error: "), result
    assert result.stderr.count("\n") == 1, result
    return result.stderr.removeprefix("error: ").rstrip("\n")


class Up:
    """A running `chiron up`."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self.process = process
        self.lines: list[str] = []
        """Printed so far."""
        self.router = ""
        self.controller = ""
        self.openai = ""
        """Base URL for OpenAI's clients; empty: none."""
        self._mark = mark

    async def ready(self) -> None:
        """Reads up to the line that gives the addresses."""
        match = await self.line(r"ready: router (\S+) controller ([^\s;]+)(?:; OpenAI API (\S+);)?")
        self.router, self.controller, self.openai = match[1], match[2], match[3] or ""

    async def line(self, pattern: str) -> re.Match[str]:
        """Reads up to a line that matches; fails when the command ends first."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line.rstrip("\n"))
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"ended without a line like {pattern!r}: {self.lines}")

    async def end(self) -> int:
        """Reads the rest and returns the exit status."""
        assert self.process.stdout is not None
        rest = (await self.process.stdout.read()).decode()
        self.lines += rest.splitlines()
        return await self.process.wait()

    def processes(self) -> dict[int, str]:
        """Process id → command line of the live processes that came of it, itself included."""
        return marked_processes(self._mark)


@asynccontextmanager
async def chiron_up(*arguments: str, directory: Path) -> AsyncIterator[Up]:
    """Starts `chiron up` on free ports; ends it and all that it started on exit."""
    mark = uuid.uuid4().hex
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        "up",
        "--router-port=0",
        "--http-port=0",
        "--controller-port=0",
        f"--directory={directory}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, _MARK: mark},
    )
    up = Up(process, mark)
    try:
        yield up
    finally:
        if process.returncode is None:
            process.terminate()
        await up.end()


@asynccontextmanager
async def watch_status(controller: str) -> AsyncIterator[AsyncIterator[Any]]:
    """The snapshots that `chiron status --watch --json` prints; Ctrl-C ends it on exit."""
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        "status",
        "--watch",
        "--json",
        f"--controller={controller}",
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )

    async def snapshots() -> AsyncIterator[Any]:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            yield json.loads(line)

    try:
        yield snapshots()
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def marked_processes(mark: str) -> dict[int, str]:
    """Process id → command line of the live processes whose environment holds the mark."""
    wanted = f"{_MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
