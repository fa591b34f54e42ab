"""One service process: start, announce line, logs, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAIL_LINES = 15
"""Log lines shown when a service does not start."""


class StartError(Exception):
    """A service process did not come up; the text holds the cause, as its log tells it.

    Attributes:
        bad_start: True when the service refused its configuration or an address, in one line.
    """

    def __init__(self, message: str, *, bad_start: bool = False) -> None:
        super().__init__(message)
        self.bad_start = bad_start


class ServiceProcess:
    """A running service, in a session of its own so that Ctrl-C in the terminal does not reach it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        """Wraps a process that has been started; see `start`."""
        self.name = name
        self.log = log
        """Everything that the process writes."""
        self.announced: dict[str, Any] = {}
        """Facts of the announce line, e.g. `address`."""
        self._process = process
        self._started = time.monotonic()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        *,
        log: Path,
        settings: Mapping[str, str],
        config: Path | None = None,
        environ: Mapping[str, str] | None = None,
        within_s: float = 60.0,
    ) -> ServiceProcess:
        """Starts `python -m module` and returns once it has announced itself.

        Args:
            name: for messages, e.g. `router`.
            module: e.g. `services.router`.
            log: file that its output goes to.
            settings: `--set` overrides.
            config: TOML file.
            environ: variables added to this process's own.
            within_s: time until the announce line.

        Raises:
            StartError: it ended or stayed silent.
        """
        arguments = [str(os.getpid()), module]
        if config is not None:
            arguments += ["--config", str(config)]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "chiron.cluster.tether",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )
        self = cls(name, process, log)
        try:
            await asyncio.wait_for(self._announcement(), within_s)
        except TimeoutError:
            self.kill()
            await process.wait()
            raise StartError(f"{name} did not announce itself within {within_s:g} s{self.tail()}") from None
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """False once the process has ended."""
        return self._process.returncode is None

    @property
    def age_s(self) -> float:
        """Time since its start, in seconds."""
        return time.monotonic() - self._started

    async def wait(self) -> int:
        """Waits for the end and returns the exit status."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Asks it to drain and end."""
        if self.running:
            self._process.terminate()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        if self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends its whole process group at once."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, within_s: float) -> bool:
        """Drains it; True when it ended by itself in time, else it is killed."""
        self.terminate()
        try:
            await asyncio.wait_for(self.wait(), within_s)
        except TimeoutError:
            self.kill()
            await self.wait()
            return False
        finally:
            if self._reader is not None and not self.running:
                await self._reader
        return True

    def tail(self) -> str:
        """The last log lines, ready to follow a message."""
        lines = self._last_lines()
        return f"; last lines of {self.log}:\n  " + "\n  ".join(lines) if lines else f" (log: {self.log})"

    async def _announcement(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):
                facts = json.loads(line)
                if isinstance(facts, dict) and "service" in facts:
                    self.announced = facts
                    self._reader = asyncio.create_task(self._drain(stdout))
                    return
        status = await self.wait()
        lines = self._last_lines()
        if status == 2 and lines and lines[-1].startswith("error: "):
            raise StartError(f"{self.name}: {lines[-1].removeprefix('error: ')}", bad_start=True)
        raise StartError(f"{self.name} ended at start with status {status}{self.tail()}")

    async def _drain(self, stdout: asyncio.StreamReader) -> None:
        # A full pipe would block the service, and a lost line would hide a cause.
        with self.log.open("ab") as sink:
            while data := await stdout.read(65536):
                sink.write(data)
                sink.flush()

    def _last_lines(self) -> list[str]:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
