"""Plots of runs and comparisons, as PNG and SVG. Needs matplotlib (the extra `sim`)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiron.config import ConfigError
from chiron.sim.compare import Entry
from chiron.sim.report import by_policy
from chiron.sim.results import TimelinePoint
from chiron.sim.runs import Run

_LONGEST = 80
"""Characters of a name in a file's: file systems allow 255 in all."""
_POINTS = 2000
"""Points of a timeline that are drawn at most: more than a plot is wide."""


def plot_run(done: Run, folder: Path) -> list[Path]:
    """GPUs and requests over time. Returns the files; ConfigError without matplotlib, OSError."""
    figure, (gpus, requests) = subplots(2, 1, figsize=(10, 6), sharex=True)
    times, points = _thinned(done.result.timeline)
    gpus.step(times, [point.gpus for point in points], where="post", label="held")
    gpus.step(times, [point.ready for point in points], where="post", label="instances ready")
    gpus.set_ylabel("GPUs, instances")
    for name, label in (
        ("running", "running"),
        ("queued_interactive", "interactive, queued"),
        ("queued_batch", "batch, queued"),
    ):
        requests.plot(times, [getattr(point, name) for point in points], label=label)
    requests.set_yscale("symlog", linthresh=10)
    requests.set_ylabel("requests")
    requests.set_xlabel("simulated time, s")
    for axes in (gpus, requests):
        axes.legend()
        axes.grid(alpha=0.3)
    gpus.set_title(f"{done.scenario.name} · {done.result.policy} · seed {done.result.seed}")
    return save(figure, folder, done.scenario.name, done.result.policy, "timeline")


def plot_comparison(name: str, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """GPU-hours over the lower bound, attainment, and GPUs over time. As `plot_run` otherwise."""
    policies = by_policy(entries)
    figure, (cost, met) = subplots(1, 2, figsize=(11, 4.5))
    for place, mine in enumerate(policies.values()):
        ratios = [entry.oracle_ratio for entry in mine if entry.oracle_ratio is not None]
        cost.bar(place, float(np.mean(ratios)) if ratios else 0.0, color=f"C{place}", alpha=0.6)
        cost.plot([place] * len(ratios), ratios, "k_")
        shares = [
            entry.figures["slo_attainment"]["all"]
            for entry in mine
            if entry.figures is not None and entry.figures["slo_attainment"]["all"] is not None
        ]
        met.bar(place, 100 * float(np.mean(shares)) if shares else 0.0, color=f"C{place}", alpha=0.6)
        met.plot([place] * len(shares), [100 * share for share in shares], "k_")
    cost.axhline(1.0, color="black", linewidth=0.8)
    cost.set_ylabel("GPU-hours over the lower bound")
    met.set_ylabel("SLO attainment, %")
    for axes in (cost, met):
        axes.set_xticks(range(len(policies)), list(policies), rotation=20, ha="right")
        axes.grid(alpha=0.3, axis="y")
    figure.suptitle(name)
    files = save(figure, folder, name, "comparison")
    figure, axes = subplots(1, 1, figsize=(10, 4.5))
    for policy, mine in policies.items():
        times, points = _thinned(mine[0].timeline)
        axes.step(times, [point.gpus for point in points], where="post", label=policy)
    axes.set_xlabel("simulated time, s")
    axes.set_ylabel("GPUs held")
    axes.set_title(f"{name} · seed {entries[0].seed}")
    axes.legend()
    axes.grid(alpha=0.3)
    return files + save(figure, folder, name, "gpus")


def check_drawing() -> None:
    """Raises ConfigError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("plots need matplotlib: install chiron-serving[sim]") from error


def subplots(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, drawn to files. Raises ConfigError without matplotlib."""
    check_drawing()
    import matplotlib

    # The file backend: no display, no interpreter-wide state that a caller must reset.
    matplotlib.use("Agg")
    # The same figure is the same SVG: ids come from a fixed salt, not at random.
    matplotlib.rcParams["svg.hashsalt"] = "chiron"
    # A dollar sign in a name is a dollar sign, not the start of a formula.
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, layout="constrained", **options)
    return figure, axes


def save(figure: Any, folder: Path, *names: str) -> list[Path]:
    """Writes a figure as PNG and SVG, named by `names`, and returns the files. Raises OSError."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    stem = "-".join(filter(None, map(_stem, names)))
    files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    pyplot.close(figure)
    return files


def _stem(name: str) -> str:
    """A name as part of a file's; a long one is cut, and told from others by its checksum."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()
    return stem if len(stem) <= _LONGEST else f"{stem[:_LONGEST]}-{zlib.crc32(name.encode()):08x}"


def _thinned(timeline: Sequence[TimelinePoint]) -> tuple[list[float], list[TimelinePoint]]:
    stride = max(1, len(timeline) // _POINTS)
    points = list(timeline[::stride])
    return [point.at_s for point in points], points
