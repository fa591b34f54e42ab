"""The attainment curve and what growth needs, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chiron.sim.planning.plan import Plan
from chiron.sim.planning.points import Point
from chiron.sim.planning.tune import Tuned
from chiron.sim.plots import save, subplots


def plot_plan(plan: Plan, folder: Path) -> list[Path]:
    """Draws what was found. Returns the files; ConfigError without matplotlib, OSError."""
    name, policy = plan.source.scenario.name, plan.need.policy
    figure, axes = subplots(1, 1, figsize=(8, 4.5))
    points = plan.need.curve.in_order
    for field, label in (("interactive", "interactive requests"), ("batch", "batch deadlines")):
        _band(axes, [point.gpus for point in points], points, field, label)
    axes.axhline(100 * plan.question.terms.goal, color="black", linewidth=0.8, linestyle=":")
    if plan.need.gpus is not None:
        axes.axvline(plan.need.gpus, color="C2", linewidth=0.8, label=f"at least {plan.need.gpus} GPUs")
    if plan.fixed.gpus is not None:
        axes.axvline(
            plan.fixed.gpus,
            color="C3",
            linewidth=0.8,
            linestyle="--",
            label=f"fixed fleet: {plan.fixed.gpus}",
        )
    _dress(axes, "GPU budget", "attained, %")
    axes.set_title(f"{name} · {policy}")
    files = save(figure, folder, name, policy, "plan")
    return files + (_plot_growth(plan, folder) if plan.growth else [])


def plot_tuned(tuned: Tuned, folder: Path) -> list[Path]:
    """Draws both policies on each fresh seed. Returns the files; ConfigError without matplotlib, OSError."""
    name, policy = tuned.source.scenario.name, tuned.policy.label
    figure, (cost, met) = subplots(1, 2, figsize=(11, 4.5))
    for place, (label, point) in enumerate((("as it was", tuned.before), ("tuned", tuned.after))):
        if label == "tuned" and not tuned.changes:
            continue
        cost.plot(
            [place] * len(point.attempts), [each.gpu_hours for each in point.attempts], "o", label=label
        )
        shares = [each.interactive if each.interactive is not None else each.batch for each in point.attempts]
        met.plot(
            [place] * len(shares), [100 * share for share in shares if share is not None], "o", label=label
        )
    for before, after in zip(tuned.before.attempts, tuned.after.attempts, strict=True):
        if tuned.changes:
            cost.plot([0, 1], [before.gpu_hours, after.gpu_hours], color="grey", linewidth=0.8)
    for axes, label in ((cost, "GPU-hours"), (met, "attained, %")):
        _dress(axes, "", label)
        axes.set_xticks([])
    figure.suptitle(f"{name} · {policy} · fresh seeds")
    return save(figure, folder, name, tuned.policy.name, "tuned")


def _plot_growth(plan: Plan, folder: Path) -> list[Path]:
    figure, (met, needed) = subplots(1, 2, figsize=(11, 4.5))
    if plan.need.gpus is not None:
        known = [
            (each.factor, each.need.curve.points[plan.need.gpus])
            for each in sorted(plan.growth, key=lambda each: each.factor)
            if plan.need.gpus in each.need.curve.points
        ]
        _band(
            met, [x for x, _ in known], [point for _, point in known], "interactive", "interactive requests"
        )
        met.set_title(f"with {plan.need.gpus} GPUs")
    answered = sorted(
        ((each.factor, each.need.gpus, each.fixed.gpus) for each in plan.growth), key=lambda each: each[0]
    )
    for place, label in ((1, plan.need.policy), (2, "fixed fleet")):
        line = [(each[0], each[place]) for each in answered if each[place] is not None]
        needed.plot([x for x, _ in line], [y for _, y in line], "o-", label=label)
    _dress(met, "times the load", "attained, %")
    _dress(needed, "times the load", "fewest GPUs")
    needed.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(plan.source.scenario.name)
    return save(figure, folder, plan.source.scenario.name, plan.need.policy, "growth")


def _band(axes: Any, xs: Sequence[float], points: Sequence[Point], field: str, label: str) -> None:
    found = [(x, spread) for x, point in zip(xs, points, strict=True) if (spread := point.spread(field))]
    if not found:
        return
    at = [x for x, _ in found]
    (line,) = axes.plot(at, [100 * spread.mean for _, spread in found], "o-", label=label)
    low, high = (
        [100 * value for value in side] for side in zip(*((s.low, s.high) for _, s in found), strict=True)
    )
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2)


def _dress(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
