"""Runs a service module that is told to stop (SIGTERM) when the process that started it is gone.

    python -m chiron.cluster.tether PARENT_PID MODULE [ARGUMENT]...

Without it, a cluster whose terminal or test runner is killed would leave its services behind. Workers are
started by agents and not tethered: they outlive an agent that is killed, and end with one that drains.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether(parent: int) -> None:
    """Asks the kernel for SIGTERM when the parent ends. Raises OSError where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # It ended before the kernel was asked.
        raise SystemExit(1)


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    tether(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
