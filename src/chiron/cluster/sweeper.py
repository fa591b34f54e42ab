"""Ends the workers that a local cluster would leave behind when it is killed while an agent is dead.

    python -m chiron.cluster.sweeper --set directory=DIRECTORY

Workers outlive their agent, so that they cannot be tethered to it. This process is tethered to the cluster's:
it is told to stop (SIGTERM) when that ends, in whatever way. It waits for the agents, which then stop their
workers themselves, and ends what nobody is left to stop.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from chiron.cluster.workers import find_workers
from services.local_agent.socket_folders import remove_left, remove_stale

_AGENTS_END_WITHIN_S = 120.0
_LOOK_S = 0.1


def sweep(directory: Path) -> None:
    """Kills the workers of every node folder below, each once its agent is gone; removes their sockets."""
    deadline = time.monotonic() + _AGENTS_END_WITHIN_S
    for lock in sorted(directory.glob("*/lock")):
        while _held(lock) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        for worker in find_workers(lock.parent, lock.parent.name):
            worker.kill()
        if not _held(lock):
            remove_left(lock.parent.absolute())
    remove_stale()


def _held(lock: Path) -> bool:
    """Whether an agent lives that holds the folder."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def main() -> None:
    """Waits for the signal, then sweeps."""
    told = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    settings = dict(argument.split("=", 1) for argument in sys.argv if "=" in argument)
    print(json.dumps({"service": "sweeper", "pid": os.getpid()}), flush=True)
    signal.sigwait(told)
    sweep(Path(settings["directory"]))


if __name__ == "__main__":
    main()
