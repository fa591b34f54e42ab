"""A service under a supervisor that does what systemd would: whatever ends is started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chiron.cluster.process import ServiceProcess, StartError

RESTART_S = 0.5
"""Between an end and the next start, in seconds."""


class Service(ABC):
    """One service of the cluster; `run` keeps it alive until it is cancelled."""

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self.name = name
        self.starts = 0
        """How often it has come up."""
        self._log = log
        self._up = asyncio.Event()
        self._stopping = False
        self._stopped = asyncio.Event()

    @property
    @abstractmethod
    def pid(self) -> int:
        """Process id, which is its process group's too; only while it is up."""

    @property
    def up(self) -> bool:
        """True from the moment that it serves until it has ended."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Returns while it is up."""
        await self._up.wait()

    async def run(self) -> None:
        """Starts it, and again after each end; cancelling ends it at once."""
        try:
            while not self._stopping:
                try:
                    await self._start()
                except StartError as error:
                    self._log(f"{self.name} did not come up: {error}")
                else:
                    self.starts += 1
                    self._up.set()
                    if self._stopping:
                        self.signal(signal.SIGTERM)
                    status = await self._wait()
                    self._up.clear()
                    self._log(f"{self.name} ended with status {status}")
                if not self._stopping:
                    await asyncio.sleep(RESTART_S)
        finally:
            self._up.clear()
            self._stopped.set()
            await self._kill()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it for good; returns when it has ended."""
        self._stopping = True
        if self.up:
            self.signal(number)
        await self._stopped.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signals the process itself; one that has just ended is left alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @abstractmethod
    async def _start(self) -> None:
        """Returns when it serves. Raises StartError, after which nothing of it runs."""

    @abstractmethod
    async def _wait(self) -> int:
        """Returns its exit status once it has ended."""

    @abstractmethod
    async def _kill(self) -> None:
        """Ends what runs of it, at once."""


class PythonService(Service):
    """A service of this repository."""

    def __init__(
        self,
        name: str,
        module: str,
        settings: Mapping[str, str],
        environ: Mapping[str, str],
        folder: Path,
        log: Callable[[str], None],
    ) -> None:
        super().__init__(name, log)
        self._module = module
        self._settings = settings
        self._environ = environ
        self._file = folder / f"{name}.log"
        self._process: ServiceProcess | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def _start(self) -> None:
        self._process = await ServiceProcess.start(
            self.name, self._module, log=self._file, settings=self._settings, environ=self._environ
        )

    async def _wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()


class Program(Service):
    """Another program, which serves once `serves` says so; it ends with this process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        folder: Path,
        log: Callable[[str], None],
        *,
        serves: Callable[[], bool],
    ) -> None:
        """`serves` may block for a moment; it is called on a thread."""
        super().__init__(name, log)
        self._command = command
        self._environ = environ
        self._file = folder / f"{name}.log"
        self._serves = serves
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def _start(self) -> None:
        with self._file.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "chiron.cluster.tethered_program",
                str(os.getpid()),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **self._environ},
                start_new_session=True,
            )
        while not await asyncio.to_thread(self._serves):
            if self._process.returncode is not None:
                raise StartError(f"{self.name} ended at start with status {self._process.returncode}")
            await asyncio.sleep(0.05)

    async def _wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
