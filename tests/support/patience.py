"""How long this machine needs now for what it does in a second when it is idle."""

from __future__ import annotations

import os

MOST = 4.0


def patience() -> float:
    """A factor for limits that only a hang is to exceed: 1 to `MOST`.

    It is the number of programs that want to run for each core. Where there are ten, whatever a test waits
    for comes late without being wrong.
    """
    return min(MOST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
