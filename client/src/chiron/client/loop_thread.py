"""An event loop in a thread of its own, on which blocking callers run asynchronous work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from chiron.client.errors import ClientClosed

T = TypeVar("T")
_LAST_WORDS_S = 2.0
"""How long requests that were cut off get to tell their callers so."""


class LoopThread:
    """An event loop that runs in a thread until it is stopped."""

    def __init__(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts the thread; `at_end` is the last thing that its loop runs."""
        self._loop = asyncio.new_event_loop()
        self._at_end = at_end
        self._lock = threading.RLock()
        self._stopped = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="chiron-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the loop and waits for it; an interrupted wait cancels it.

        Raises ClientClosed when the loop has been stopped, or was left behind by a fork.
        """
        if os.getpid() != self._pid:
            work.close()
            raise ClientClosed("the client was made in another process: make one after the fork")
        with self._lock:
            if self._stopped:
                work.close()
                raise ClientClosed("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("the client was closed during the request") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the thread and waits for its end; a second call does nothing."""
        if os.getpid() != self._pid:
            return  # A fork has no threads, and the loop is the other process's.
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        # The garbage collector may have called from the thread itself, which cannot wait for its own end.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._finish())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await self._at_end()
        if others:
            _, late = await asyncio.wait(others, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
