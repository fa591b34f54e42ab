"""What single parts of the global autoscaler are worth: each switched off where it is meant to help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Size
from chiron.sim.paper.experiments.loads import interactive
from chiron.sim.paper.experiments.rate_tables import COLUMNS, having, policy_row, ratio, values
from chiron.sim.paper.experiments.telling import grouped
from chiron.sim.paper.goal_rows import GOALS
from chiron.sim.paper.sections import Row, Table, mean, table
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.variations import vary

PART, SWITCH = "part", "switch"
"""Labels of these cases."""
ON, OFF = "on", "off"
BACKLOG_ROW = "w_b-70b-22k"


@dataclass(frozen=True, slots=True)
class Switched:
    """One part, and how it is switched off."""

    off: Mapping[str, float]
    """Parameters of `chiron` without it."""
    scenario: Callable[[bool], Scenario]
    """Where it is meant to help; whether the run is a quick one is known."""


def _backlog(_quick: bool) -> Scenario:
    return GOALS[BACKLOG_ROW].scenario(None)


def _drafts(quick: bool) -> Scenario:
    return vary(interactive(quick=quick), "speculation")


def _bursts(quick: bool) -> Scenario:
    return interactive(quick=quick, what="CV 8", traffic={"cv": 8.0})


PARTS: Mapping[str, Switched] = {
    "batch instances go before a deadline (taper)": Switched({"taper_margin": 1e9}, _backlog),
    "a part of an instance can wait (defer_far)": Switched({"defer_far": 0.15}, _backlog),
    "slots as steps serve them (step_share)": Switched({"step_share": 0.0}, _drafts),
    "streams handed over at drains (hand_over)": Switched({"hand_over": 0.0}, _bursts),
}


def part_cases(experiment: str, size: Size) -> list[Case]:
    """Every part on and off; runs with all parts are mostly those of other experiments."""
    return [
        Case(experiment, {PART: name, SWITCH: switch}, part.scenario(size.quick), choice, seed)
        for name, part in PARTS.items()
        for switch, choice in (
            (ON, PolicyChoice("chiron")),
            (OFF, PolicyChoice("chiron", parameters=part.off)),
        )
        for seed in size.reported(quick=1, full=2)
    ]


def parts_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each part on and off, with what it changes."""
    rows = [row for name in values(outcomes, PART) for row in _rows(str(name), having(outcomes, PART, name))]
    columns = ("part", "workload", *COLUMNS, "× oracle-lb against without")
    return table("Single parts of the global autoscaler, each on and off", columns, rows)


def _rows(name: str, outcomes: Sequence[Outcome]) -> list[Row]:
    sides = grouped(outcomes, SWITCH)
    costs = {switch: mean(ratio(each.figures) for each in mine) for (switch,), mine in sides.items()}
    with_it, without = costs.get(ON), costs.get(OFF)
    rows = []
    for (switch,), mine in sides.items():
        made = policy_row(name, mine[0].case.policy.label, mine)
        gained = None
        if switch == ON and with_it is not None and without:
            gained = f"{with_it / without - 1:+.1%}"
        cells = (made.cells[0], mine[0].case.scenario.name, *made.cells[1:], gained)
        rows.append(Row(cells, made.command))
    return rows
