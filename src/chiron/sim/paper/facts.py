"""What a report says of the run that it reports: which code, which seeds, which machine, how long."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from chiron import sim


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one run of the evaluation."""

    command: str
    """What was typed."""
    size: str
    """Quick or full."""
    code: str
    """The commit, or the version where there is none."""
    seeds: tuple[int, ...]
    """That figures are reported on, in ascending order."""
    machine: str
    at: str
    """When it ended, in UTC."""
    wall_s: float
    runs: int
    """Simulated runs that the report rests on."""
    cached: int = 0
    """Of these, runs whose figures an earlier run of the evaluation had left."""
    failed: tuple[str, ...] = ()
    """Runs that have no figures, each with its reason."""
    unfinished: str = ""
    """What is missing since the run was ended early; "": nothing."""

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Name and value of each, ready to be read."""
        cached = f", of which {self.cached:,} came from earlier ones" if self.cached else ""
        missing = f"{self.unfinished}; the same command goes on from there"
        return (
            *((("ended early, without", missing),) if self.unfinished else ()),
            ("command", self.command),
            ("size", self.size),
            ("code", self.code),
            ("seeds", ", ".join(str(seed) for seed in self.seeds) or "none"),
            ("machine", self.machine),
            ("ended", self.at),
            ("took", f"{self.wall_s / 60:.1f} min for {self.runs:,} simulated runs{cached}"),
        )


def gathered(
    command: str,
    size: str,
    seeds: Sequence[int],
    wall_s: float,
    runs: int,
    cached: int = 0,
    failed: Sequence[str] = (),
    unfinished: str = "",
) -> Facts:
    """The facts of a run that ends now, on this machine, with this code."""
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    seeds = tuple(sorted(set(seeds)))
    return Facts(command, size, code(), seeds, machine(), at, wall_s, runs, cached, tuple(failed), unfinished)


def machine() -> str:
    """Cores that this process may use, processor, system, Python and NumPy."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} {'core' if cores == 1 else 'cores'}, {_processor()}, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )


def code() -> str:
    """The commit that the package is from, and whether it was changed since; else its version."""
    folder = Path(sim.__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    # A repository around an installed package is somebody else's.
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        from importlib.metadata import version

        return f"chiron-serving {version('chiron-serving')}"
    return f"commit {commit}{' with changes' if _git(folder, 'status', '--porcelain', '--', '.') else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
