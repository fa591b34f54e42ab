"""Processes that run simulations side by side and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once when an exception leaves the block, and when this process dies."""
    # Spawned, for a forked child would inherit the threads' locks of a progress bar.
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with (
        watched,
        held,
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_leave_with, initargs=(watched,)
        ) as pool,
    ):
        try:
            yield pool
        except BaseException:
            held.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_with(watched: Connection) -> None:
    """Makes this process end at once when the parent closes its end of a pipe, as it does when it dies.

    Ctrl-C, which reaches the whole process group, ends it silently too: the parent says what there is to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def leave() -> None:
        with suppress(EOFError, OSError):
            watched.recv_bytes()
        os._exit(1)

    threading.Thread(target=leave, name="watches-the-parent", daemon=True).start()
