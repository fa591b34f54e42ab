"""Becomes a program that is told to stop (SIGTERM) when the process that started it is gone.

python -m chiron.cluster.tethered_program PARENT_PID PROGRAM [ARGUMENT]...
"""

from __future__ import annotations

import os
import sys

from chiron.cluster.tether import tether


def main() -> None:
    """Ties this process to its parent, then becomes the program: the tie outlasts that."""
    tether(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
