"""The paper's headlines: gains over Llumnix, as published and tuned, beside what physics allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Later, Size
from chiron.sim.paper.experiments import ablation
from chiron.sim.paper.experiments.burstiness import BURSTINESS
from chiron.sim.paper.experiments.loads import interactive
from chiron.sim.paper.experiments.physical import (
    best_rates,
    ceiling_cases,
    ceiling_per_gpu_s,
    ceiling_table,
)
from chiron.sim.paper.experiments.rate_tables import again, attainment, gpu_hours, per_gpu
from chiron.sim.paper.experiments.rates_w_a import RATES_W_A
from chiron.sim.paper.experiments.rates_w_b import RATES_W_B
from chiron.sim.paper.experiments.telling import expected, grouped
from chiron.sim.paper.headlines import Judged, Served, as_well, judged
from chiron.sim.paper.sections import (
    Axis,
    Finding,
    Plot,
    Point,
    Row,
    Section,
    Series,
    Table,
    number,
    row,
    share,
    table,
)
from chiron.sim.paper.speed import expected_requests
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.tuned import LLUMNIX, tuned
from chiron.sim.tuning import Aim, Search, Trial

NAME = "headline"
OURS = "chiron"
PUBLISHED = ("llumnix", "llumnix-migration", LLUMNIX)
"""At the thresholds that were published: as the paper ran it, with migration, and with priorities too."""
FLEET = "fixed"
"""The smallest fixed fleet that attains, found on the reported requests."""
RUN, TUNING = "run", "tuning"
_AIMS = {
    Aim.ATTAINMENT: "llumnix tuned for attainment",
    Aim.THROUGHPUT: "llumnix tuned for throughput",
}
_BORROWED = (RATES_W_A, RATES_W_B, BURSTINESS)
"""Experiments whose runs count here too, and are not made twice."""


def own_workloads(*, quick: bool) -> tuple[Scenario, ...]:
    """W_A and W_B."""
    return interactive(quick=quick), ablation.scenarios(quick=quick)[1]


def tuned_workloads(*, quick: bool) -> tuple[Scenario, ...]:
    """Where Llumnix is tuned: in a quick run on W_A alone."""
    found = own_workloads(quick=quick)
    return found[:1] if quick else found


def cases(size: Size, traces: Path | None) -> Sequence[Case]:
    """The ceilings first; then ours, Llumnix and a fixed fleet on every workload that others run too."""
    found = ceiling_cases(NAME, size)
    seen = set()
    # With all that was published switched on it is there in any case, as what is tuned.
    wanted = (OURS, *(PUBLISHED[:2] if size.quick else PUBLISHED), FLEET)
    own = [
        _run(scenario, policy, PolicyChoice(policy), seed)
        for scenario in own_workloads(quick=size.quick)
        for policy in wanted
        # The search for a fleet costs many runs; of the second workload it is made where there is time.
        if not (policy == FLEET and size.quick and scenario.backlogs)
        for seed in size.reported(quick=1, full=1 if policy == FLEET else 2)
    ]
    borrowed = [
        _run(case.scenario, case.policy.name, case.policy, case.seed)
        for experiment in _BORROWED
        for case in experiment.cases(size, traces)
        if case.policy == PolicyChoice(case.policy.name) and case.policy.name in wanted
    ]
    for case in (*own, *borrowed):
        if case.key not in seen:
            seen.add(case.key)
            found.append(case)
    return found


def _run(scenario: Scenario, who: str, choice: PolicyChoice, seed: int) -> Case:
    return Case(NAME, {"what": RUN, "workload": scenario.name, "who": who}, scenario, choice, seed)


def search_for(scenario: Scenario, aim: Aim, size: Size) -> Search:
    """Static batch size and thresholds of Llumnix with everything that was published switched on."""
    # A run of W_B takes three times as long: there the starts race, and nothing is climbed from.
    rounds = 0 if size.quick or scenario.backlogs else 2
    seeds = (1,) if size.quick or scenario.backlogs else (1, 2)
    return tuned(LLUMNIX, scenario.settings.models, aim=aim, seeds=seeds, rounds=rounds)


def next_cases(size: Size, outcomes: Sequence[Outcome]) -> Sequence[Case]:
    """The runs that the searches want next, or the best of each on the reported seeds."""
    found: list[Case] = []
    for scenario in tuned_workloads(quick=size.quick):
        for aim, who in _AIMS.items():
            search = search_for(scenario, aim, size)
            done = {trial_of(each.case): each.figures for each in _trials(outcomes, scenario.name, who)}
            labels = {"what": TUNING, "workload": scenario.name, "who": who}
            trials = search.next_trials(done)
            found += [Case(NAME, labels, scenario, search.choice(trial), trial.seed) for trial in trials]
            if not trials:
                best = search.best(done).choice
                found += [_run(scenario, who, best, seed) for seed in size.reported(quick=1, full=2)]
    return found


def later(size: Size) -> Later:
    """Of two searches on each workload, whose first candidates are the same runs."""
    runs, requests = 0, 0.0
    for scenario in tuned_workloads(quick=size.quick):
        each = 6 + 2 if size.quick else 6 + 4 + (0 if scenario.backlogs else 6 + 16)
        runs += each
        requests += each * expected_requests(scenario)
    return Later(runs, requests)


def _trials(outcomes: Sequence[Outcome], workload: str, who: str) -> Iterator[Outcome]:
    for each in outcomes:
        labels = each.case.labels
        if (labels["what"], labels.get("workload"), labels.get("who")) == (TUNING, workload, who):
            yield each


def trial_of(case: Case) -> Trial:
    """The trial that a tuning case is."""
    return Trial(tuple(sorted(case.policy.parameters.items())), case.seed)


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Every headline against every baseline, the ceilings, and who else does as well."""
    best = best_rates(outcomes)
    runs = [each for each in outcomes if each.case.labels["what"] == RUN]
    groups = grouped(runs, "workload", "who")
    served = [
        Served(
            workload,
            who,
            fmean(attainment(each.figures) or 0.0 for each in mine),
            all(each.figures["attains"] for each in mine),
            fmean(gpu_hours(each.figures) or 0.0 for each in mine),
            fmean(per_gpu(each.figures) or 0.0 for each in mine),
            ceiling_per_gpu_s(mine[0].case.scenario, best),
        )
        for (workload, who), mine in groups.items()
    ]
    against = [who for who in (*PUBLISHED, *_AIMS.values(), FLEET) if any(who == each.who for each in served)]
    found = [each for who in against for each in judged(served, OURS, who)]
    return Section(
        HEADLINE.title,
        (
            expected(
                "SLO attainment up to 90 % higher than Llumnix's, request throughput up to 300 % higher, up "
                "to 70 % fewer GPUs. What each autoscaler contributes is in the ablation."
            ),
            "Each gain is the largest over the workloads; points of attainment, finished requests per GPU "
            "and second, and GPU-hours where chiron attains. The ceiling is the largest gain that a policy "
            "could have that served the same requests at the best steady throughput per GPU and missed "
            "nothing. "
            "Llumnix runs at its published thresholds, without migration, with it, and with priorities, and "
            f"with the batch size and thresholds that a search found on other seeds ({LLUMNIX}, tuned for "
            "each workload).",
            *_plainly(served),
        ),
        (_headline_table(found), ceiling_table(outcomes), _runs_table(groups, served)),
        _plots(served),
        _findings(found),
    )


def _plainly(served: Sequence[Served]) -> tuple[str, ...]:
    told = as_well(served, OURS)
    if not told:
        return ("Nobody else attains on any of these workloads with as few GPU-hours as chiron.",)
    return (
        "Who else does as well, attaining with at most 2 % more GPU-hours than chiron (or where chiron does "
        f"not attain): {' '.join(told)}",
    )


def _headline_table(found: Sequence[Judged]) -> Table:
    columns = (
        "headline",
        "published",
        "against",
        "chiron",
        "baseline",
        "gain",
        "ratio",
        "workload",
        "ceiling of the gain",
        "",
    )
    return table("The largest gains", columns, [_headline_row(each) for each in found])


def _headline_row(each: Judged) -> Row:
    headline, largest = each.headline, each.largest
    published = f"up to {headline.told(headline.published)}"
    if largest is None:
        return row(headline.claim, published, each.against, *(None,) * 6, each.verdict)
    return row(
        headline.claim,
        published,
        each.against,
        headline.form(largest.ours),
        headline.form(largest.theirs),
        headline.told(largest.gain, ".1f"),
        number(largest.ratio, ".2f"),
        largest.cell,
        None if each.ceiling is None else headline.told(each.ceiling, ".1f"),
        each.verdict,
    )


def _runs_table(groups: dict[tuple[str, ...], list[Outcome]], served: Sequence[Served]) -> Table:
    rows = [
        row(
            each.cell,
            each.who,
            _parameters(mine[0].case.policy),
            share(each.attained),
            f"{sum(one.figures['attains'] for one in mine)} of {len(mine)}",
            number(each.gpu_hours),
            number(each.per_gpu_s),
            number(each.ceiling_per_gpu_s),
            command=again(mine),
        )
        for each, mine in zip(served, groups.values(), strict=True)
    ]
    columns = (
        "workload",
        "policy",
        "parameters",
        "attainment",
        "seeds that attain",
        "GPU-hours",
        "requests per GPU and s",
        "at the ceiling",
    )
    return table("Every workload that the headlines are taken from", columns, rows)


def _parameters(choice: PolicyChoice) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sorted(choice.parameters.items()))


def _plots(served: Sequence[Served]) -> tuple[Plot, ...]:
    cells = tuple(dict.fromkeys(each.cell for each in served))
    drawn: tuple[tuple[str, str, Callable[[Served], float]], ...] = (
        ("attainment", "SLO attainment, %", lambda each: 100 * each.attained),
        ("per-gpu", "requests per GPU and second", lambda each: each.per_gpu_s),
    )
    return tuple(
        Plot(
            f"{NAME}-{short}",
            axis,
            Axis("", ticks=cells),
            Axis(axis, least=0.0),
            tuple(
                Series(
                    who,
                    _bars(served, who, cells, figure),
                )
                for who in dict.fromkeys(each.who for each in served)
            ),
            "bars",
        )
        for short, axis, figure in drawn
    )


def _bars(
    served: Sequence[Served], who: str, cells: Sequence[str], figure: Callable[[Served], float]
) -> tuple[Point, ...]:
    mine = [each for each in served if each.who == who]
    return tuple(Point(float(cells.index(each.cell)), figure(each)) for each in mine)


def _findings(found: Sequence[Judged]) -> tuple[Finding, ...]:
    compared = (PUBLISHED[0], PUBLISHED[1], *_AIMS.values())
    return tuple(each.finding() for each in found if each.against in compared)


HEADLINE = Experiment(
    NAME,
    "The headlines, beside what physics allows",
    "The largest gains over Llumnix at its published thresholds and tuned, beside the paper's figures and "
    "the most that any policy could gain.",
    cases,
    tell,
    next_cases,
    later,
)
