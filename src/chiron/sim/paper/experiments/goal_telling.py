"""What the goals' runs tell: one table, and for each workload who wins and by what."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chiron.sim.paper.case import Figures, Outcome
from chiron.sim.paper.compared import OURS
from chiron.sim.paper.experiments.rate_tables import having, ratio, values
from chiron.sim.paper.goal_floor import steady_need
from chiron.sim.paper.goal_rows import GOALS
from chiron.sim.paper.sections import Finding, Row, Section, mean, number, row, share, table

PUBLISHED, TUNING, TUNED, REFERENCE, CEILING = "as published", "tuning", "tuned", "reference", "ceiling"
"""Variants. Tuning runs are on other seeds, and in no table; references know what is to come."""
FIXED, CLAIRVOYANT = "fixed-model", "oracle-feasible"
"""The references."""
CALM, CALM_SHARE = "utilization", 1 / 3
"""Whose actions and reversals the goal is a share of."""
_CHANGES = ("scaling_actions", "reversals")
_COMMANDS = 5
_COLUMNS = (
    "workload",
    "policy",
    "seeds that attain",
    "× oracle-lb, median [least–most]",
    "goal",
    "GPU-hours, mean",
    "interactive, least",
    "deadlines, least",
    "TTFT p99, s",
    "actions an hour",
    "reversals an hour",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One policy on one workload, over its seeds."""

    policy: str
    """With parameters, where it is tuned."""
    variant: str
    outcomes: tuple[Outcome, ...]

    @property
    def attains(self) -> bool:
        """On every seed."""
        return all(each.figures["attains"] for each in self.outcomes)

    def middle(self) -> float | None:
        """Median ratio over the seeds."""
        found = [known for each in self.outcomes if (known := ratio(each.figures)) is not None]
        return statistics.median(found) if found else None

    def on(self, seeds: set[int]) -> float | None:
        """Mean GPU-hours on these seeds."""
        return mean(each.figures["gpu_hours"] for each in self.outcomes if each.case.seed in seeds)

    def an_hour(self, figure: str, seeds: set[int]) -> float:
        """Mean of a count over each run's simulated hours, on these seeds."""
        return statistics.fmean(
            each.figures[figure] * 3600 / each.figures["simulated_s"]
            for each in self.outcomes
            if each.case.seed in seeds
        )

    @property
    def seeds(self) -> set[int]:
        """That it ran on."""
        return {each.case.seed for each in self.outcomes}


def contenders(outcomes: Sequence[Outcome]) -> list[Contender]:
    """Of one workload: everybody with figures on reported seeds, ours first."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        variant = str(each.case.labels["variant"])
        if variant not in (TUNING, CEILING):
            found.setdefault((each.case.policy.label, variant), []).append(each)
    made = [Contender(policy, variant, tuple(mine)) for (policy, variant), mine in found.items()]
    return sorted(made, key=lambda each: each.policy != OURS)


def goals_section(outcomes: Sequence[Outcome]) -> Section:
    """The table, a sentence for each workload, and up to three findings for each."""
    rows: list[Row] = []
    paragraphs: list[str] = []
    findings: list[Finding] = []
    for name in values(outcomes, "row"):
        mine = having(outcomes, "row", name)
        found = contenders(mine)
        ceiling = next((each.figures for each in mine if each.case.labels["variant"] == CEILING), {})
        rows += [_row(name, each) for each in found]
        ours = next((each for each in found if each.policy == OURS), None)
        if ours is not None:
            findings.append(_goal(name, ours, ceiling))
            others = [each for each in found if each is not ours and each.variant != REFERENCE]
            references = [each for each in found if each.variant == REFERENCE]
            if others:
                told = beside(name, ours, others)
                findings.append(told)
                findings += _calm(name, ours, others)
                why = f" ({told.why})" if told.why else ""
                known = " ".join(_beside_reference(ours, each) for each in references)
                paragraphs.append(f"{name}: {told.found}{why}. {known}".strip())
    missing = [name for name in GOALS if name not in values(outcomes, "row")]
    if missing:
        paragraphs.append(f"Without runs here: {', '.join(missing)}.")
    return Section(
        "The goals",
        (
            "Ours runs with one configuration on all workloads. A fixed fleet is the smallest that "
            "attains, found on the very requests that are reported, as is the schedule of oracle-feasible: "
            "nobody can know them before. Baselines "
            "run as published; tuned ones have the batch size and the thresholds that attained with the "
            "fewest GPU-hours on seeds 1 and 2.",
            *paragraphs,
        ),
        (table("On reported seeds", _COLUMNS, rows),) if rows else (),
        (),
        tuple(findings),
    )


def _row(name: str, each: Contender) -> Row:
    figures = [outcome.figures for outcome in each.outcomes]
    ratios = [known for found in figures if (known := ratio(found)) is not None]
    middle = each.middle()
    spread = None if middle is None else f"{middle:.3f}"
    if spread is not None and len(ratios) > 1:
        spread = f"{spread} [{min(ratios):.3f}–{max(ratios):.3f}]"
    policy = each.policy
    fleets = sorted({found["fleet"] for found in figures} - {None})
    if fleets:
        policy = f"{policy} of {'–'.join(map(str, dict.fromkeys((fleets[0], fleets[-1]))))}"
    elif each.variant == TUNED:
        policy = f"{policy}, tuned"
    return row(
        name,
        policy,
        f"{sum(found['attains'] for found in figures)} of {len(figures)}",
        spread,
        f"{GOALS[name].goal:.2f}",
        number(mean(found["gpu_hours"] for found in figures), ",.2f"),
        share(_least(figures, "interactive")),
        share(_least(figures, "batch")),
        number(_seconds(each, "ttft_ms"), ".2f"),
        *(number(each.an_hour(figure, each.seeds), ".1f") for figure in _CHANGES),
        command="\n".join(outcome.command for outcome in each.outcomes[:_COMMANDS]),
    )


def _least(figures: Sequence[Figures], kind: str) -> float | None:
    return min(
        (share for each in figures if (share := each["slo_attainment"][kind]) is not None), default=None
    )


def _seconds(each: Contender, figure: str) -> float | None:
    found = [known for outcome in each.outcomes if (known := outcome.figures[figure]["p99"]) is not None]
    return statistics.fmean(found) / 1e3 if found else None


def _goal(name: str, ours: Contender, ceilings: Figures) -> Finding:
    """Whether the goal is reached: by the median over the seeds, with every seed attaining."""
    row, middle, ceiling = GOALS[name], ours.middle(), ceilings.get("ratio")
    attaining = sum(each.figures["attains"] for each in ours.outcomes)
    count = len(ours.outcomes)
    if middle is None:
        return Finding(f"{name}: × oracle-lb", f"≤ {row.goal:.2f}", "nothing finished", "no figure")
    why = f"a prototype was seen at {row.seen}"
    if ceiling is not None:
        why += f"; an engine that never idles is at {ceiling:.3f}"
    need = steady_need(ours.outcomes[0].case.scenario, ceilings.get("interactive_per_gpu_s"))
    bound = mean(each.figures["oracle_lb"]["gpu_hours"] for each in ours.outcomes)
    if need is not None and bound:
        why += (
            f"; the arrivals alone need {need.instances} instances all the time (with one fewer they wait "
            f"beyond the TTFT SLO within {need.late_after_s:.0f} s), which is {need.gpu_hours / bound:.3f}"
        )
    unreachable = ceiling is not None and ceiling > row.goal
    met = middle <= row.goal and attaining == count
    return Finding(
        f"{name}: × oracle-lb, {count} {'seed' if count == 1 else 'seeds'}",
        f"≤ {row.goal:.2f}",
        f"{middle:.3f}, {attaining} of {count} attain",
        "met" if met else "not reachable" if unreachable else "not met",
        why,
    )


def beside(name: str, ours: Contender, others: Sequence[Contender]) -> Finding:
    """Whether ours holds fewer GPU-hours than every baseline that attains too, on common seeds."""
    claim, asked = f"{name}: GPU-hours below every attaining baseline", "the fewest"
    if not ours.attains:
        return Finding(claim, asked, "ours does not attain on every seed", "not met")
    rivals = [
        (theirs / mine, each)
        for each in others
        if each.attains
        and (theirs := each.on(ours.seeds)) is not None
        and (mine := ours.on(each.seeds)) is not None
    ]
    failing = ", ".join(sorted(_named(each) for each in others if not each.attains))
    short = f"these do not attain: {failing}" if failing else ""
    if not rivals:
        return Finding(claim, asked, "ours alone attains", "met", short)
    over, best = min(rivals, key=lambda rival: rival[0])
    found = f"{_named(best)} comes nearest and holds {over - 1:+.1%} GPU-hours over ours"
    if over < 1:
        found = f"{_named(best)} wins with {1 - over:.1%} fewer GPU-hours than ours"
    why = "; ".join(filter(None, (_difference(ours, best), short)))
    return Finding(claim, asked, found, "met" if over > 1 else "not met", why)


def _calm(name: str, ours: Contender, others: Sequence[Contender]) -> list[Finding]:
    """Whether ours scales, and takes back, a third as often as the reference or less, on common seeds."""
    theirs = next((each for each in others if (each.policy, each.variant) == (CALM, PUBLISHED)), None)
    common = ours.seeds & theirs.seeds if theirs is not None else set()
    if theirs is None or not common:
        return []
    mine = [ours.an_hour(figure, common) for figure in _CHANGES]
    other = [theirs.an_hour(figure, common) for figure in _CHANGES]
    met = all(each <= most * CALM_SHARE for each, most in zip(mine, other, strict=True))
    why = "" if theirs.attains else f"{CALM} does not attain"
    return [
        Finding(
            f"{name}: scaling actions and reversals an hour",
            f"a third of {CALM}'s at most, which are {other[0]:.1f} and {other[1]:.1f}",
            f"{mine[0]:.1f} and {mine[1]:.1f}",
            "met" if met else "not met",
            "; ".join(filter(None, (_difference(ours, theirs), why))),
        )
    ]


def _named(each: Contender) -> str:
    return f"{each.policy}, tuned" if each.variant == TUNED else each.policy


def _difference(ours: Contender, theirs: Contender) -> str:
    """What the two did otherwise, by their figures on common seeds."""
    common = ours.seeds & theirs.seeds
    told = []
    compared: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
        ("p99 TTFT, s", lambda found: (found["ttft_ms"]["p99"] or 0.0) / 1e3, ".2f"),
        ("p99 mean ITL, ms", lambda found: found["itl_ms"]["p99"] or 0.0, ".0f"),
        ("GPUs at the peak", lambda found: float(found["gpus_peak"]), ".0f"),
        ("scaling actions", lambda found: float(found["scaling_actions"]), ".0f"),
    )
    for text, figure, form in compared:
        pair = [
            statistics.fmean(figure(each.figures) for each in side.outcomes if each.case.seed in common)
            for side in (ours, theirs)
        ]
        told.append(f"{text}: {pair[0]:{form}} against {pair[1]:{form}}")
    return f"ours against {_named(theirs)}: " + ", ".join(told)


def _beside_reference(ours: Contender, reference: Contender) -> str:
    theirs, mine = reference.on(ours.seeds), ours.on(reference.seeds)
    if theirs is None or not mine:
        return ""
    named = {
        FIXED: "The smallest fixed fleet that attains",
        CLAIRVOYANT: "A schedule that knows all arrivals and lengths",
    }
    return f"{named[reference.policy]} holds {theirs / mine - 1:+.1%} GPU-hours over ours."
