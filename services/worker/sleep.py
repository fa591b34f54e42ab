"""How a worker falls asleep and wakes: one after the other, and never left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from chiron.rpc.errors import ChironError, Reason
from services.worker.engines.base import Engine, EngineBusyError
from services.worker.live import LiveRequests
from services.worker.state import LOADING, READY, SLEEPING, WorkerState

_LEVELS = (1, 2)


class SleepControl:
    """Takes one command at a time; the next one waits until the engine has done what was asked before."""

    def __init__(
        self,
        state: WorkerState,
        live: LiveRequests,
        *,
        finish: Callable[[float], Awaitable[int]],
        fail: Callable[[str], None],
    ) -> None:
        """Begins awake.

        Args:
            state: the worker's.
            live: its requests.
            finish: waits for them for at most so many seconds (0: no limit), cuts the rest, returns how many.
            fail: makes the worker FAILED, with the reason.
        """
        self._state = state
        self._live = live
        self._finish = finish
        self._fail = fail
        self._turn = asyncio.Lock()
        self._under_way: asyncio.Task[None] | None = None

    async def sleep(self, engine: Engine, level: int, drain_timeout_s: float | None) -> int:
        """Takes the weights off the GPU and returns how many requests were cut; asleep already: 0.

        Args:
            engine: the loaded engine.
            level: 1 keeps the weights in host memory, 2 drops them.
            drain_timeout_s: time that live requests have, in seconds, 0: no limit; cancelled meanwhile, the
                worker serves on. None: nothing may be live.

        Raises:
            ChironError: BUSY while requests are live or the worker does not serve, INVALID_ARGUMENT.
        """
        if level not in _LEVELS:
            raise ChironError.invalid([("level", f"must be 1 or 2, not {level}")])
        await self._turn.acquire()
        try:
            if self._state.value == SLEEPING:
                self._turn.release()
                return 0
            if self._state.value != READY:
                raise ChironError(Reason.BUSY, f"cannot sleep: the worker is {self._state.describe()}")
            if drain_timeout_s is None and len(self._live):
                raise ChironError(Reason.BUSY, f"cannot sleep: {len(self._live)} requests are live")
            self._state.retire_to_sleep(True)
            aborted = 0 if drain_timeout_s is None else await self._finish(drain_timeout_s)
        except BaseException:
            self._state.retire_to_sleep(False)
            self._turn.release()
            raise
        await self._to_its_end(self._fall_asleep(engine, level))
        return aborted

    async def wake(self, engine: Engine) -> None:
        """Returns when the engine serves again; one that is awake stays so. Raises ChironError (BUSY)."""
        await self._turn.acquire()
        if self._state.value != SLEEPING:
            self._turn.release()
            if self._state.value == READY:
                return
            raise ChironError(Reason.BUSY, f"cannot wake: the worker is {self._state.describe()}")
        # Whoever looks now must not take it for asleep: its GPU fills.
        self._state.move(LOADING)
        await self._to_its_end(self._wake_up(engine))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what must not stop half-way, whoever asked for it; then the next one may begin."""
        self._under_way = asyncio.create_task(work, name="sleep or wake")
        self._under_way.add_done_callback(self._done)
        await asyncio.shield(self._under_way)

    def _done(self, work: asyncio.Task[None]) -> None:
        self._turn.release()
        if not work.cancelled():
            work.exception()  # Whoever asked has it, or has gone.

    async def _fall_asleep(self, engine: Engine, level: int) -> None:
        try:
            await engine.sleep(level)
        except EngineBusyError as error:
            self._state.retire_to_sleep(False)
            raise ChironError(Reason.BUSY, str(error)) from error
        except Exception as error:
            # How much of it is still on the GPU nobody knows.
            text = f"cannot sleep: {type(error).__name__}: {error}"
            self._fail(text)
            raise ChironError(Reason.BUSY, text) from error
        if self._state.can(SLEEPING):
            self._state.move(SLEEPING)

    async def _wake_up(self, engine: Engine) -> None:
        try:
            await engine.wake()
        except Exception as error:
            text = f"cannot wake: {type(error).__name__}: {error}"
            self._fail(text)
            raise ChironError(Reason.BUSY, text) from error
        if self._state.can(READY):
            self._state.move(READY)
