"""Soak test: a mixed load on a real cluster under a seeded schedule of faults; one line of JSON at the end.

    python -m tests.soak --seconds 900 --faults 300 --seed 1

docs/soak.md tells how to read what it prints. The exit status is 1 when an error column is not 0.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.soak.asks import Rates
from tests.soak.run import Diary, Options, run
from tests.soak.schedule import ScheduleError, Shape, make_schedule

_INTERRUPTED = 130
_BAD_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the schedule (default: 120)")
    parser.add_argument("--faults", type=int, default=None, help="how many (default: one every 3 s)")
    parser.add_argument("--seed", type=int, default=0, help="of schedule and load (default: 0)")
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=2, help="instances of each model (default: 2)")
    parser.add_argument("--agents", type=int, default=3, help="nodes of 2 GPUs (default: 3)")
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--controllers", type=int, default=3)
    parser.add_argument("--etcd", type=int, default=3, help="members (default: 3)")
    parser.add_argument("--interactive", type=float, default=2.0, help="requests a second (default: 2)")
    parser.add_argument("--batch", type=float, default=1.0, help="requests a second (default: 1)")
    parser.add_argument("--reckless", action="store_true", help="let all of a kind be struck at once")
    parser.add_argument("--directory", type=Path, help="logs and state (default: a new one below .chiron)")
    parser.add_argument("--dry-run", action="store_true", help="print the schedule and run nothing")
    chosen = parser.parse_args(arguments)
    faults = round(chosen.seconds / 3) if chosen.faults is None else chosen.faults
    try:
        shape = Shape(
            models=chosen.models,
            replicas=chosen.replicas,
            agents=chosen.agents,
            routers=chosen.routers,
            controllers=chosen.controllers,
            etcd=chosen.etcd,
        )
        schedule = make_schedule(
            chosen.seed, seconds=chosen.seconds, faults=faults, shape=shape, reckless=chosen.reckless
        )
    except (ScheduleError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_USE
    if chosen.dry_run:
        for fault in schedule:
            print(fault.line())
        return 0
    options = Options(
        seed=chosen.seed,
        seconds=chosen.seconds,
        schedule=schedule,
        shape=shape,
        rates=Rates(chosen.interactive, chosen.batch),
        reckless=chosen.reckless,
        folder=_folder(chosen.directory),
    )
    return uvloop.run(_main(options))


def _folder(chosen: Path | None) -> Path:
    if chosen is None:
        root = Path(".chiron")
        root.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("soak-%Y%m%d-%H%M%S-"), dir=root)).absolute()
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen.absolute()


async def _main(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with (options.folder / "faults.log").open("a") as file:
        print(f"logs and state: {options.folder}", file=sys.stderr)
        try:
            report = await run(options, Diary(file))
        except asyncio.CancelledError:
            print("interrupted; every process has been ended", file=sys.stderr)
            return _INTERRUPTED
        except TimeoutError:
            print(f"error: the cluster did not come up; see {options.folder}", file=sys.stderr)
            return 1
    print(report.line(), flush=True)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
