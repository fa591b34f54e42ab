"""Attainment, and the capacity that it takes, against how bursty arrivals are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.loads import interactive
from chiron.sim.paper.experiments.rate_tables import (
    COLUMNS,
    attained_percent,
    attainment,
    by_policy,
    having,
    policy_row,
    ratio,
    values,
)
from chiron.sim.paper.experiments.telling import each_by, expected, grouped, policy_series
from chiron.sim.paper.sections import Axis, Finding, Plot, Section, table
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import INTERACTIVE_GOAL
from chiron.sim.scenario import Scenario

NAME = "burstiness"
QUICK_CVS = (1.0, 8.0)
FULL_CVS = (1.0, 2.0, 4.0, 8.0)
POLICIES = ("chiron", "llumnix", "fixed")


def scenario_at(cv: float, *, quick: bool) -> Scenario:
    """Gamma arrivals at a constant mean rate."""
    return interactive(quick=quick, what="" if cv == 1 else f"CV {cv:g}", traffic={"cv": cv})


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every coefficient of variation under every policy."""
    return [
        Case(NAME, {"cv": cv}, scenario_at(cv, quick=size.quick), PolicyChoice(policy), seed)
        for cv in (QUICK_CVS if size.quick else FULL_CVS)
        for policy in POLICIES
        # A search for a fleet is many runs.
        for seed in size.reported(quick=1, full=1 if policy == "fixed" else 2)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Who attains at which burstiness, and over-provisioning beside it."""
    rows = [
        policy_row(f"{cv:g}", policy, mine)
        for cv in values(outcomes, "cv")
        for policy, mine in by_policy(having(outcomes, "cv", cv)).items()
    ]
    drawn = (
        ("attainment", "SLO attainment, %", attained_percent),
        ("over-provisioning", "GPU-hours over the lower bound", ratio),
    )
    plots = tuple(
        Plot(
            f"{NAME}-{short}",
            axis,
            Axis("coefficient of variation of the gaps"),
            Axis(axis, least=0.0),
            policy_series(outcomes, "cv", figure),
        )
        for short, axis, figure in drawn
    )
    return Section(
        BURSTINESS.title,
        (
            expected(
                "attainment holds at rising burstiness as long as capacity is held in reserve, and the "
                "reserve that is needed grows with it; no figure is published for these arrivals."
            ),
            "GPU-hours over the lower bound are the over-provisioning. `fixed` is the smallest fleet that "
            "attains on the very requests that are reported: what a constant reserve would have to be.",
        ),
        (table("Interactive requests at one mean rate, gamma arrivals", ("CV", *COLUMNS), rows),),
        plots,
        _findings(outcomes),
    )


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    ours = by_policy(outcomes).get("chiron", [])
    if not ours:
        return ()
    shares = each_by(grouped(ours, "cv"), lambda each: attainment(each.figures))
    missing = {cv: found for (cv,), found in shares.items() if found < INTERACTIVE_GOAL}
    over = each_by(grouped(outcomes, "policy", "cv"), lambda each: ratio(each.figures))
    reserve = ", ".join(
        f"{over['chiron', cv]:.2f} at CV {cv}" + (f" (fixed {fixed:.2f})" if fixed is not None else "")
        for (cv,) in shares
        for fixed in [over.get(("fixed", cv))]
        if ("chiron", cv) in over
    )
    worst = min(shares.values())
    return (
        Finding(
            "chiron attains at any burstiness",
            f"{INTERACTIVE_GOAL:.0%} at each CV up to {max(float(cv) for (cv,) in shares):g}",
            f"{worst:.2%} at the least; × oracle-lb {reserve}",
            "not met" if missing else "met",
            "".join(f"{found:.2%} at CV {cv}. " for cv, found in missing.items()).strip(),
        ),
    )


BURSTINESS = Experiment(
    NAME,
    "Burstiness",
    "Interactive requests at one mean rate and a coefficient of variation of 1 (Poisson) to 8: attainment, "
    "and how many GPU-hours more than the lower bound it takes.",
    cases,
    tell,
)
