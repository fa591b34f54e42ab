"""Tables and plots of figures against a swept value, one line for each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chiron.sim.paper.case import Figures, Outcome
from chiron.sim.paper.sections import (
    Axis,
    Plot,
    Point,
    Row,
    Series,
    Table,
    mean,
    number,
    point,
    row,
    share,
    spread,
    table,
)

Figure = Callable[[Figures], float | None]
COLUMNS = (
    "policy",
    "attainment",
    "seeds that attain",
    "GPU-hours",
    "× oracle-lb",
    "requests per GPU and second",
    "GPUs at the peak",
)
_COMMANDS = 5
"""That a row shows at most."""


def attainment(figures: Figures) -> float | None:
    """Share of all requests that attained, 0 to 1."""
    found: float | None = figures["slo_attainment"]["all"]
    return found


def attained_percent(figures: Figures) -> float | None:
    """The same, 0 to 100."""
    found = attainment(figures)
    return None if found is None else 100 * found


def per_gpu(figures: Figures) -> float | None:
    """Finished requests per GPU and second."""
    found: float = figures["throughput"]["requests_per_gpu_hour"]
    return found / 3600


def gpu_hours(figures: Figures) -> float | None:
    """GPU-hours held."""
    found: float = figures["gpu_hours"]
    return found


def ratio(figures: Figures) -> float | None:
    """GPU-hours over the lower bound."""
    found: float | None = figures["oracle_lb"]["ratio"]
    return found


def values(outcomes: Sequence[Outcome], label: str) -> list[Any]:
    """The label's values, each once, in order of appearance."""
    return list(dict.fromkeys(each.case.labels[label] for each in outcomes))


def having(outcomes: Sequence[Outcome], label: str, value: Any) -> list[Outcome]:
    """Those whose label is this."""
    return [each for each in outcomes if each.case.labels[label] == value]


def by_policy(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Policy's label → its outcomes, in order of appearance."""
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.case.policy.label, []).append(each)
    return found


def again(outcomes: Sequence[Outcome]) -> str:
    """The commands of the first few of a row's runs, a line each; each runs one of them again."""
    commands = list(dict.fromkeys(each.command for each in outcomes if each.command))
    return "\n".join(commands[:_COMMANDS])


def policy_row(first: str, policy: str, outcomes: Sequence[Outcome]) -> Row:
    """The figures of one policy over its seeds, under `COLUMNS` after the first."""
    figures = [each.figures for each in outcomes]
    return row(
        first,
        policy,
        share(mean(attainment(each) for each in figures)),
        f"{sum(each['attains'] for each in figures)} of {len(figures)}",
        spread(gpu_hours(each) for each in figures),
        spread((ratio(each) for each in figures), ".3f"),
        spread(per_gpu(each) for each in figures),
        number(mean(each["gpus_peak"] for each in figures), ".0f"),
        command=again(outcomes),
    )


def sweep_tables(outcomes: Sequence[Outcome], label: str, unit: str) -> tuple[Table, ...]:
    """A table for each mix of models: a row for each value of the label and each policy.

    Args:
        outcomes: with labels `mix` and this one.
        label: what was swept.
        unit: of its values.
    """
    tables = []
    for mix in values(outcomes, "mix"):
        of_mix = having(outcomes, "mix", mix)
        rows = [
            policy_row(value if isinstance(value, str) else f"{value:g}", policy, mine)
            for value in values(of_mix, label)
            for policy, mine in by_policy(having(of_mix, label, value)).items()
        ]
        tables.append(table(str(mix), (unit, *COLUMNS), rows))
    return tuple(tables)


def sweep_plots(outcomes: Sequence[Outcome], name: str, label: str, unit: str) -> tuple[Plot, ...]:
    """Attainment, throughput per GPU and GPU-hours against the label, for each mix of models.

    Args:
        outcomes: with labels `mix` and this one; values that are texts stand side by side as bars.
        name: of the experiment, which begins the names of the plots.
        label: what was swept.
        unit: of its values.
    """
    drawn: tuple[tuple[str, str, Figure], ...] = (
        ("attainment", "SLO attainment, %", attained_percent),
        ("per-gpu", "requests per GPU and second", per_gpu),
        ("gpu-hours", "GPU-hours", gpu_hours),
    )
    plots = []
    for mix in values(outcomes, "mix"):
        of_mix = having(outcomes, "mix", mix)
        places = values(of_mix, label)
        named = any(isinstance(place, str) for place in places)
        for short, axis, figure in drawn:
            series = tuple(
                Series(policy, _points(mine, label, figure, places if named else None))
                for policy, mine in by_policy(of_mix).items()
            )
            plots.append(
                Plot(
                    f"{name}-{mix}-{short}",
                    f"{mix}: {axis}",
                    Axis(unit, ticks=tuple(map(str, places)) if named else ()),
                    Axis(axis, least=0.0),
                    series,
                    "bars" if named else "lines",
                )
            )
    return tuple(plots)


def _points(
    outcomes: Sequence[Outcome], label: str, figure: Figure, places: Sequence[str] | None
) -> tuple[Point, ...]:
    return tuple(
        point(
            float(value) if places is None else float(places.index(value)),
            (figure(each.figures) for each in having(outcomes, label, value)),
        )
        for value in values(outcomes, label)
    )
