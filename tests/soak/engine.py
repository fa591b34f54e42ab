"""The sim engine with what a GPU engine has beside it: a process of its own, and a GPU that it holds.

Named in a ModelSpec as `tests.soak.engine:CoredEngine`. It writes what the sim engine writes.

Each GPU is a file in the folder `CHIRON_SOAK_GPUS`, named after node and index, on which the engine takes
a lock that the core inherits. The kernel gives it back when the last process that holds it is gone, however
that went: so a lock that cannot be had is a GPU that two process groups hold, and is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from services.worker.engines.base import EngineConfig, EngineDeadError, EngineLoadError
from services.worker.engines.sim import SimEngine
from services.worker.engines.sim.clock import Clock, MonotonicClock

GPUS = "CHIRON_SOAK_GPUS"
NODE = "CHIRON_SOAK_NODE"
CONFLICTS = "conflicts.jsonl"
_LINGERS_S = 5.0
# A core that has lost its worker takes its time: who needs the GPU has to end it.
_CORE = f"""
import os, time
while beat := os.read(0, 4096):
    os.write(1, beat)
time.sleep({_LINGERS_S})
"""


class CoredEngine(SimEngine):
    """A step ends when its time is over and its core has answered, so that the core's faults are its own."""

    _core: Core | None = None

    @classmethod
    async def start(cls, config: EngineConfig, clock: Clock | None = None) -> CoredEngine:
        """Takes the GPUs, starts the core and loads. Raises EngineLoadError, also for a GPU that is held."""
        held = hold_gpus(config.instance_id)
        core = Core(held)
        try:
            engine = await super().start(config, _CoreClock(clock or MonotonicClock(), core))
        except BaseException:
            core.close()
            raise
        assert isinstance(engine, CoredEngine)
        engine._core = core
        core.on_end = lambda: engine._die(f"engine process {core.pid} has exited")
        return engine

    async def close(self) -> None:
        """Stops stepping and ends the core."""
        await super().close()
        if self._core is not None:
            self._core.close()


class Core:
    """A child that answers each beat with a beat."""

    def __init__(self, held: list[int]) -> None:
        """Starts it; it keeps the descriptors of the locks open."""
        self.held = held
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CORE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=held,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self.pid = self._child.pid
        self.on_end: Callable[[], None] = lambda: None
        self._beats = self._child.stdin.fileno()
        self._answers = self._child.stdout.fileno()
        os.set_blocking(self._answers, False)
        self._loop = asyncio.get_running_loop()
        self._answered = asyncio.Event()
        self._ended = False
        self._loop.add_reader(self._answers, self._read)

    async def beat(self) -> None:
        """Returns when the core has answered. Raises EngineDeadError when it is gone."""
        self._answered.clear()
        if not self._ended:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._beats, b".")
            await self._answered.wait()
        if self._ended:
            raise EngineDeadError(f"engine process {self.pid} has exited")

    def close(self) -> None:
        """Ends it; may be called twice."""
        if not self._ended:
            self._ended = True
            self._loop.remove_reader(self._answers)
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        while self.held:
            os.close(self.held.pop())

    def _read(self) -> None:
        if os.read(self._answers, 4096):
            self._answered.set()
        elif not self._ended:
            self._ended = True
            self._loop.remove_reader(self._answers)
            self._answered.set()
            self.on_end()


class _CoreClock:
    """Real time, in which nothing ends before the core has answered."""

    def __init__(self, clock: Clock, core: Core) -> None:
        self._clock = clock
        self._core = core

    def now(self) -> float:
        return self._clock.now()

    async def sleep_until(self, instant: float) -> None:
        await self._clock.sleep_until(instant)
        await self._core.beat()


def hold_gpus(instance_id: str) -> list[int]:
    """Locks this worker's GPUs for as long as a process has the descriptors open.

    Raises EngineLoadError when somebody holds one; that is written to the file of conflicts.
    """
    folder, node = Path(os.environ[GPUS]), os.environ[NODE]
    held = []
    for index in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
        descriptor = os.open(folder / f"{node}-{index}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode().strip()
            conflict = {
                "time": time.time(),
                "node": node,
                "gpu": index,
                "holder": holder,
                "claimant": f"{instance_id} pid {os.getpid()}",
            }
            with (folder / CONFLICTS).open("a") as file:
                file.write(json.dumps(conflict) + "\n")
            raise EngineLoadError(f"GPU {index} of {node} is held by {holder}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{instance_id} pid {os.getpid()}\n".encode(), 0)
        held.append(descriptor)
    return held
