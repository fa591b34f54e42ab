"""Ends every process of a run once the process that ran it is gone, however that went.

    python -m tests.soak.reaper PARENT_PID NAME=VALUE

The run ends its processes itself; this is for a run that is killed. A process belongs to the run when its
environment holds NAME=VALUE; frozen ones and workers whose agent is gone do so too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

from tests.soak.gpus import Processes

_BETWEEN_S = 0.05


def reap(parent: int, mark: str) -> None:
    """Waits for the parent's end, then kills what has the mark until nothing is left."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(parent)
        if os.getppid() == parent:
            select.select([descriptor], [], [])
        os.close(descriptor)
    kill_all(mark)


def kill_all(mark: str) -> None:
    """Kills every process with the mark but this one; returns when none is left."""
    while victims := [process for process, _ in Processes(mark).live() if process.pid != os.getpid()]:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        time.sleep(_BETWEEN_S)


if __name__ == "__main__":
    reap(int(sys.argv[1]), sys.argv[2])
