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
    """A pool whose processes end at once on Ctrl-C or SystemExit in the block, and when this process dies.

    After any other exception what runs is finished and the rest left. A process that ends at once may leave
    half a result behind, for which the pool's own thread waits: after Ctrl-C end the program by os._exit.
    """
    # Spawned, for a forked child would inherit the threads' locks of a progress bar.
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with watched, held:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with, initargs=(watched,))
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
