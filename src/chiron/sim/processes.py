"""Processes that run simulations side by side and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

_ENDING = (signal.SIGINT, signal.SIGTERM)
P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once on Ctrl-C or SystemExit in the block, and when this process dies.

    After any other exception what runs is finished and the rest left. A process that ends at once may leave
    half a result behind, for which the pool's own thread waits: after Ctrl-C end the program by os._exit.
    """
    # Spawned, for a forked child would inherit the threads' locks of a progress bar.
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with watched, held:
        pool = _Pool(workers, mp_context=context, initializer=_leave_with, initargs=(watched,))
        try:
            yield pool
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            held.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


class _Pool(ProcessPoolExecutor):
    """Starts its processes, which it does in submit, without being interrupted.

    A process whose start-up data breaks off half-way would end with a traceback of its own.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the pool does; what ends the program in the meantime does so after it."""
        if threading.current_thread() is not threading.main_thread():
            # Handlers run in the main thread, and so interrupt no other.
            return super().submit(fn, *args, **kwargs)
        with _held_back(signal.SIGINT), _held_back(signal.SIGTERM), _started_deaf():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """A signal that comes during the block does what it does after it.

    A blocked signal would not wait: threads of a library leave it unblocked, and the handler still runs here.
    """
    came: list[int] = []
    before = signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, before)
        if came:
            signal.raise_signal(number)


@contextmanager
def _started_deaf() -> Iterator[None]:
    """A process started in the block begins with the signals that end it blocked, until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
