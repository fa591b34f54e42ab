"""What the sections of several experiments are made of, besides tables and plots of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from chiron.sim.paper.case import Outcome
from chiron.sim.paper.experiments.rate_tables import Figure, by_policy, having, values
from chiron.sim.paper.sections import Series, number, point


def expected(text: str) -> str:
    """The paragraph that tells what the paper, or its evaluation's plan, leads to expect."""
    return f"Expected: {text}"


def grouped(outcomes: Iterable[Outcome], *labels: str) -> dict[tuple[str, ...], list[Outcome]]:
    """Outcomes by the texts of these labels, in order of appearance; `policy` is the policy's own label."""
    found: dict[tuple[str, ...], list[Outcome]] = {}
    for each in outcomes:
        place = tuple(
            each.case.policy.label if label == "policy" else _text(each.case.labels[label])
            for label in labels
        )
        found.setdefault(place, []).append(each)
    return found


def middle(values: Iterable[float | None], form: str = "g") -> str | None:
    """Median, least and most as a cell; a run without the figure is beyond all others, and shown as never."""
    found = [float("inf") if value is None else value for value in values]
    if not found:
        return None
    median, least, most = (
        _ended(value, form) for value in (statistics.median(found), min(found), max(found))
    )
    return median if least == most else f"{median} [{least}–{most}]"


def each_by(
    groups: dict[tuple[str, ...], list[Outcome]], figure: Callable[[Outcome], float | None]
) -> dict[tuple[str, ...], float]:
    """The mean of a figure over each group's runs; groups without it are left out."""
    found = {}
    for place, mine in groups.items():
        values = [value for value in map(figure, mine) if value is not None]
        if values:
            found[place] = statistics.fmean(values)
    return found


def policy_series(
    outcomes: Sequence[Outcome], label: str, figure: Figure, order: Sequence[str] = ()
) -> tuple[Series, ...]:
    """A line for each policy: the mean over its seeds, with the spread, against a label's values.

    Args:
        outcomes: with this label.
        label: on the x axis.
        figure: on the y axis.
        order: of a label whose values are names: at the places 0, 1, 2, …
    """
    return tuple(
        Series(
            policy,
            tuple(
                point(
                    float(order.index(value) if order else value),
                    (figure(each.figures) for each in having(mine, label, value)),
                )
                for value in values(mine, label)
            ),
        )
        for policy, mine in by_policy(outcomes).items()
    )


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _ended(value: float, form: str) -> str:
    return "never" if value == float("inf") else number(value, form) or "–"
