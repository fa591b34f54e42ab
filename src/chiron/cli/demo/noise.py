"""How long this machine lets a process wait for a core: the noise that every time measured here carries.

`python -m chiron.cli.demo.noise` measures until its standard input ends, and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import select
import sys
import time
from array import array
from dataclasses import dataclass

from chiron.cli.demo.figures import percentile

_SLEEP_S, _WORK_S = 0.05, 0.002
"""It sleeps, then computes: a machine short of cores wakes a sleeper at once and lets a worker wait."""


@dataclass(frozen=True, slots=True)
class Noise:
    """By how much 50 ms of sleep and 2 ms of work took longer than that, in milliseconds."""

    p50_ms: float
    p99_ms: float
    samples: int


class NoiseMeter:
    """Measures in a process of its own, so that the machine's load shows and not that of the demo's loop.

    ```python
    async with NoiseMeter() as meter: ...
    meter.noise
    ```
    """

    noise: Noise | None = None
    """Once the block has ended; None where the process could not be asked."""

    async def __aenter__(self) -> NoiseMeter:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        out, _err = await self._process.communicate()
        if self._process.returncode == 0:
            self.noise = Noise(**json.loads(out))


def _measure() -> None:
    """Sleeps, works and notes how long it waited beside that, until the input ends."""
    late_ms = array("d")
    while True:
        began = time.monotonic()
        readable, _, _ = select.select([sys.stdin], [], [], _SLEEP_S)
        if readable:
            break
        computed = time.process_time()
        while (work_s := time.process_time() - computed) < _WORK_S:
            pass
        late_ms.append((time.monotonic() - began - _SLEEP_S - work_s) * 1e3)
    found = {"p50_ms": percentile(late_ms, 50) or 0.0, "p99_ms": percentile(late_ms, 99) or 0.0}
    print(json.dumps({**found, "samples": len(late_ms)}))


if __name__ == "__main__":
    _measure()
