"""The same requests with and without prefix caching and speculative decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.loads import interactive, rate_per_s
from chiron.sim.paper.experiments.rate_tables import COLUMNS, attainment, gpu_hours, having, policy_row
from chiron.sim.paper.experiments.telling import each_by, expected, grouped
from chiron.sim.paper.sections import Axis, Finding, Plot, Section, Series, Table, point, table
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import INTERACTIVE_GOAL
from chiron.sim.scenario import Scenario
from chiron.sim.variations import PREFIX_SHARE, SHARED_PREFIXES, SPECULATION, vary

NAME = "optimisations"
NEITHER = "neither"
VARIANTS: Mapping[str, str] = {
    NEITHER: "",
    "prefix caching": "prefix-caching",
    "speculative decoding": "speculation",
    "both": "prefix-caching,speculation",
}
"""Names in the report, and in `chiron.sim.variations`."""
CHIRON = PolicyChoice("chiron")
POLICIES: Mapping[str, Sequence[PolicyChoice]] = {
    "ShareGPT": (CHIRON, PolicyChoice("llumnix")),
    "long prompts": (CHIRON,),
}
"""Workload → who serves it."""
BESIDE: Mapping[str, Sequence[PolicyChoice]] = {
    "ShareGPT": (PolicyChoice("chiron", parameters={"step_share": 0.0}), PolicyChoice("fixed")),
    "long prompts": (),
}
"""Where there is time for it: slots counted whole, whatever fills the steps, and the smallest fleet."""


def scenario_of(workload: str, variant: str, *, quick: bool) -> Scenario:
    """The usual requests, or ones with prompts of which prefix caching can save much."""
    what, traffic = "", dict[str, Any]()
    if workload != "ShareGPT":
        what = workload
        traffic = {"lengths": "lognormal", "prompt_mean": 1000.0, "output_mean": 300.0}
        # They take about twice the GPUs, so that half the rate keeps the fleet's size.
        traffic["rate_per_s"] = rate_per_s(quick=quick) / 2
    plain = interactive(quick=quick, what=what, traffic=traffic)
    return vary(plain, VARIANTS[variant]) if VARIANTS[variant] else plain


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every variant of both workloads; the full size has the policies of `BESIDE` too, on one seed."""
    return [
        Case(
            NAME,
            {"workload": workload, "variant": variant},
            scenario_of(workload, variant, quick=size.quick),
            policy,
            seed,
        )
        for workload, policies in POLICIES.items()
        for variant in VARIANTS
        for policy in (policies if size.quick else (*policies, *BESIDE[workload]))
        for seed in size.reported(quick=1, full=1 if policy in BESIDE[workload] else 2)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Attainment and cost of each variant."""
    return Section(
        OPTIMISATIONS.title,
        (
            expected(
                "autoscaling works the same with engines that are faster: attainment holds, and fewer "
                "GPU-hours do the work; no figure is published for these lengths."
            ),
            f"Long prompts have 1,000 tokens on average, and answers 300. With prefix caching "
            f"{PREFIX_SHARE:.0%} of each prompt is one of {SHARED_PREFIXES} beginnings that engines keep. "
            f"Speculative decoding drafts {SPECULATION.draft_tokens} tokens a step, of which one is accepted "
            f"at {SPECULATION.acceptance_rate:.0%} if those before it were; both numbers are assumed, and "
            "what drafting costs is not simulated, so that the gain is the most that it can be. With "
            "step_share=0 slots count whole, whether or not the steps can serve that many requests.",
        ),
        tuple(_table(workload, having(outcomes, "workload", workload)) for workload in _workloads(outcomes)),
        tuple(_plot(workload, having(outcomes, "workload", workload)) for workload in _workloads(outcomes)),
        tuple(
            finding
            for workload in _workloads(outcomes)
            for finding in _findings(workload, having(outcomes, "workload", workload))
        ),
    )


def _workloads(outcomes: Sequence[Outcome]) -> list[str]:
    return [place for (place,) in grouped(outcomes, "workload")]


def _table(workload: str, outcomes: Sequence[Outcome]) -> Table:
    rows = [
        policy_row(variant, policy, mine)
        for (variant, policy), mine in grouped(outcomes, "variant", "policy").items()
    ]
    return table(workload, ("optimisations", *COLUMNS), rows)


def _plot(workload: str, outcomes: Sequence[Outcome]) -> Plot:
    variants = tuple(VARIANTS)
    bars = tuple(
        Series(
            policy,
            tuple(
                point(float(variants.index(variant)), (gpu_hours(each.figures) for each in found))
                for (variant,), found in grouped(mine, "variant").items()
            ),
        )
        for (policy,), mine in grouped(outcomes, "policy").items()
    )
    name = f"{NAME}-{workload.lower().replace(' ', '-')}"
    axes = Axis("", ticks=variants), Axis("GPU-hours", least=0.0)
    return Plot(name, f"GPU-hours, {workload}", *axes, bars, "bars")


def _findings(workload: str, outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    groups = grouped(outcomes, "policy", "variant")
    shares = each_by(groups, lambda each: attainment(each.figures))
    hours = each_by(groups, lambda each: gpu_hours(each.figures))
    found = []
    for variant in VARIANTS:
        plain, fast = hours.get(("chiron", NEITHER)), hours.get(("chiron", variant))
        share = shares.get(("chiron", variant))
        if variant == NEITHER or plain is None or fast is None or share is None:
            continue
        missed = []
        if share < INTERACTIVE_GOAL:
            missed.append(f"attainment is {share:.2%}")
        if fast >= plain:
            missed.append("it takes no fewer GPU-hours")
        found.append(
            Finding(
                f"chiron on faster engines, {workload}, {variant}",
                f"{INTERACTIVE_GOAL:.0%} attained with fewer GPU-hours than without",
                f"{share:.2%} with {fast:.2f} GPU-hours instead of {plain:.2f} ({fast / plain - 1:+.0%})",
                "not met" if missed else "met",
                ", ".join(missed),
            )
        )
    return tuple(found)


OPTIMISATIONS = Experiment(
    NAME,
    "Prefix caching and speculative decoding",
    "The same requests on engines with prefix caching, with speculative decoding, with both, with neither.",
    cases,
    tell,
)
