"""Batches under faults: many items while routers, workers and the database are killed; one line of JSON.

    python -m tests.batch_soak --store sqlite --items 100000 --seed 1
    python -m tests.batch_soak --store postgres --routers 2 --items 100000 --seed 1

docs/batch.md tells how to read what it prints. The exit status is 1 when an error column is not 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.batch_soak.run import Options, run
from tests.soak.run import Diary

_BAD_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.batch_soak", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--routers", type=int, default=1, help="more than one need postgres (default: 1)")
    parser.add_argument("--items", type=int, default=2_000, help="(default: 2000)")
    parser.add_argument("--batches", type=int, default=10, help="that they are spread over (default: 10)")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between faults (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and the items (default: 0)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="gives up after (default: 3600)")
    parser.add_argument("--directory", type=Path, help="logs and state (default: a new one below .chiron)")
    chosen = parser.parse_args(arguments)
    if chosen.routers > 1 and chosen.store == "sqlite":
        print(
            "error: --routers: a SQLite file is one router's; several need --store postgres", file=sys.stderr
        )
        return _BAD_USE
    if min(chosen.routers, chosen.items, chosen.batches) < 1 or chosen.batches > chosen.items:
        print("error: routers, items and batches must be >= 1, batches at most items", file=sys.stderr)
        return _BAD_USE
    folder = chosen.directory
    if folder is None:
        Path(".chiron").mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="batch-soak-", dir=".chiron"))
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(
        store=chosen.store,
        routers=chosen.routers,
        items=chosen.items,
        batches=chosen.batches,
        every_s=chosen.every,
        seed=chosen.seed,
        seconds=chosen.seconds,
        folder=folder.absolute(),
    )
    print(f"logs and state: {folder}", file=sys.stderr)
    with (folder / "faults.log").open("w") as log:
        report = uvloop.run(run(options, Diary(log)))
    print(report.line())
    return report.status


if __name__ == "__main__":
    sys.exit(main())
