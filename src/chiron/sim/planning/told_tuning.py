"""What tuning found, in sentences, as settings to paste, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from chiron.policy.fleet import autoscaler_names
from chiron.sim.parameters import settable
from chiron.sim.planning.shown import point_cells, point_json
from chiron.sim.planning.told import percent, served
from chiron.sim.planning.tune import Tuned
from chiron.sim.policies import StaticLimits
from chiron.sim.runs import parameters


def tuned_sentences(tuned: Tuned) -> list[str]:
    """Whether it is worth anything, and what it rests on."""
    told = [_verdict(tuned)]
    seeds = ", ".join(str(attempt.seed) for attempt in tuned.after.attempts)
    if tuned.source.is_recorded:
        told.append(
            "The requests were recorded: the first half of their time was searched on and the second half is "
            f"reported, simulated with seeds {seeds}; another day may ask for other values."
        )
    else:
        searched = ", ".join(map(str, tuned.searched))
        told.append(f"Searched on the workloads of seeds {searched}; reported on those of seeds {seeds}.")
    return told


def settings_to_paste(tuned: Tuned) -> str:
    """The changes, for a live configuration and for the simulator; "" unless they are better."""
    if not tuned.better:
        return ""
    limits = settable(StaticLimits)
    autoscaler = tuned.policy.parts.autoscaler
    live = {name: value for name, value in tuned.changes.items() if name not in limits}
    lines = []
    if live and autoscaler in autoscaler_names():
        lines += ["[controller.autoscaler]", f'policy = "{autoscaler}"', "", "[controller.autoscaler.chiron]"]
        lines += [f"{name} = {_toml(tuned, name, value)}" for name, value in sorted(live.items())]
        lines.append("")
    options = " ".join(f"--set {name}={value:.12g}" for name, value in sorted(tuned.changes.items()))
    lines.append(f"# chiron sim run SCENARIO.toml --policy {tuned.policy.name} {options}")
    return "\n".join(lines)


def tuned_table(tuned: Tuned) -> Table:
    """Both policies on the fresh seeds."""
    title = f"{tuned.source.scenario.name} · {tuned.policy.label} · on fresh seeds"
    table = Table(title=Text(title, style="table.title", justify="center"))
    headings = ("", "attains", "GPU-h", "interactive", "batch", "held", "cost/h", "all held")
    for heading in (*headings, "TTFT p99", "ITL p99"):
        table.add_column(heading, justify="right")
    for name, point in (("as it was", tuned.before), ("tuned", tuned.after)):
        if name == "tuned" and not tuned.changes:
            continue
        spread = point.spread("gpu_hours")
        hours = "" if spread is None else f"{spread.mean:.3f} [{spread.low:.3f}–{spread.high:.3f}]"
        table.add_row(name, f"{point.attaining}/{len(point.attempts)}", hours, *point_cells(point))
    return table


def tuned_json(tuned: Tuned) -> dict[str, Any]:
    """Everything that was found; the same for the same seeds but for `wall_s`."""
    return {
        "scenario": tuned.source.scenario.name,
        "policy": tuned.policy.label,
        "goal": tuned.terms.goal,
        "gpus": tuned.terms.most_gpus,
        "answer": tuned_sentences(tuned),
        "better": tuned.better,
        "changes": dict(tuned.changes),
        "settings": settings_to_paste(tuned),
        "search": {
            "seeds": list(tuned.searched),
            "knobs": {name: list(each) for name, each in sorted(tuned.knobs.items())},
        },
        "seeds": list(tuned.terms.seeds),
        "before": point_json(tuned.before),
        "after": point_json(tuned.after),
        "gpu_hours_relative": asdict(tuned.gpu_hours),
        "attained": asdict(tuned.attained),
        "runs": tuned.runs,
        "parameters": parameters(tuned.source.scenario, tuned.policy),
    }


def _verdict(tuned: Tuned) -> str:
    if not tuned.changes:
        told = (
            f"No better than the defaults: none of {len(tuned.knobs)} knobs did better on the seeds searched"
        )
        return f"{told}. On fresh ones {served(tuned.before)} attained."
    changes = " and ".join(
        f"{name} {value:.12g} instead of {tuned.had[name]:.12g}"
        for name, value in sorted(tuned.changes.items())
    )
    after, before = tuned.after.attaining, tuned.before.attaining
    of = len(tuned.after.attempts)
    hours = tuned.gpu_hours
    less = "fewer" if hours.mean < 0 else "more"
    figures = (
        f"{percent(abs(hours.mean))} {less} GPU-hours (± {percent(hours.spread)}), "
        f"{served(tuned.after)} attained, before {served(tuned.before)}; "
        f"it attains on {after} of {of} seeds, before on {before}"
    )
    if tuned.better:
        return f"Better: {changes}: {figures}."
    if after < before:
        reason = "it attains on fewer fresh seeds"
    elif tuned.attained.is_real or (hours.is_real and hours.mean > 0):
        reason = "it does worse on fresh seeds"
    else:
        reason = "the difference is within the spread of the seeds"
    return f"No better than the defaults: {reason}. The best that was found, {changes}: {figures}."


def _toml(tuned: Tuned, name: str, value: float) -> str:
    settings = tuned.policy.make().autoscaler_settings
    kind = settable(settings)[name]
    if kind is bool:
        return "true" if value else "false"
    text = f"{value:.12g}"
    return text if kind is int or "." in text or "e" in text else f"{text}.0"
