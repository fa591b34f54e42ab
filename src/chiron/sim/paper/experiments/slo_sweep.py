"""Attainment against the SLO, from tight to loose."""

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

NAME = "slo-sweep"
SLOS = {
    "1 s, 50 ms": (1.0, 0.05),
    "2 s, 75 ms": (2.0, 0.075),
    "5 s, 100 ms": (5.0, 0.1),
    "10 s, 200 ms": (10.0, 0.2),
    "30 s, 500 ms": (30.0, 0.5),
}
"""TTFT and mean ITL, tight to loose; the first is the strict setting."""
PAPER = "10 s, 200 ms"
"""The paper's."""
QUICK_SLOS = ("1 s, 50 ms", PAPER, "30 s, 500 ms")
POLICIES = ("chiron", "chiron-static", "llumnix")


def scenario_at(slo: str, *, quick: bool) -> Scenario:
    """Poisson arrivals with one of `SLOS`."""
    ttft_slo_s, itl_slo_s = SLOS[slo]
    what = "" if slo == PAPER else f"SLO {slo}"
    return interactive(quick=quick, what=what, ttft_slo_s=ttft_slo_s, itl_slo_s=itl_slo_s)


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every SLO under every policy."""
    return [
        Case(NAME, {"slo": slo}, scenario_at(slo, quick=size.quick), PolicyChoice(policy), seed)
        for slo in (QUICK_SLOS if size.quick else SLOS)
        for policy in POLICIES
        for seed in size.reported(quick=1, full=2 if policy == POLICIES[0] else 1)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Who attains under which SLO, and what it costs."""
    slos = values(outcomes, "slo")
    rows = [
        policy_row(slo, policy, mine)
        for slo in slos
        for policy, mine in by_policy(having(outcomes, "slo", slo)).items()
    ]
    drawn = (
        ("attainment", "SLO attainment, %", attained_percent),
        ("cost", "GPU-hours over the lower bound", ratio),
    )
    plots = tuple(
        Plot(
            f"{NAME}-{short}",
            axis,
            Axis("TTFT and ITL SLO, tight to loose", ticks=tuple(slos)),
            Axis(axis, least=0.0),
            policy_series(outcomes, "slo", figure, slos),
        )
        for short, axis, figure in drawn
    )
    return Section(
        SLO_SWEEP.title,
        (
            expected(
                "attainment rises as the SLO gets looser, and the batch size that the local autoscaler "
                "allows rises with it, so that looser SLOs take fewer GPU-hours; no figure is published for "
                "these values."
            ),
        ),
        (table("Interactive requests at one rate", ("TTFT, ITL SLO", *COLUMNS), rows),),
        plots,
        _findings(outcomes),
    )


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    ours = by_policy(outcomes).get("chiron", [])
    shares = each_by(grouped(ours, "slo"), lambda each: attainment(each.figures))
    return tuple(
        Finding(
            f"chiron attains with TTFT, ITL of {slo}",
            f"{INTERACTIVE_GOAL:.0%}",
            f"{found:.2%}",
            "met" if found >= INTERACTIVE_GOAL else "not met",
        )
        for (slo,), found in shares.items()
    )


SLO_SWEEP = Experiment(
    NAME,
    "SLOs from tight to loose",
    "The same requests under several SLOs, from TTFT 1 s and ITL 50 ms to 30 s and 500 ms: who keeps them, "
    "and with how many GPU-hours.",
    cases,
    tell,
)
