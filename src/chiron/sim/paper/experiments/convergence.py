"""How soon and how well the local autoscalers find a batch size, one saturated engine each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chiron.sim.convergence import Loop, Pair, Yield, arrived_after, best_pair, converge, settled_after, swept
from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import again
from chiron.sim.paper.experiments.telling import expected, grouped, middle
from chiron.sim.paper.sections import (
    Axis,
    Finding,
    Plot,
    Point,
    Section,
    Series,
    Table,
    row,
    share,
    table,
)
from chiron.sim.paper.workloads import PROFILES, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.saturated_engine import Tally
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Traffic

NAME = "convergence"
LOCALS = ("reactive", "model")
SLOS_MS = (20.0, 50.0, 200.0, 2000.0)
STARTS = (32, 256)
START_BUDGET = 2048
"""Step-token budget of every start: vLLM's default."""
CALM_S = 100
"""A run has settled when its limits stay for so long, to the end."""
_QUICK_GRID = ((64, 96, 128, 256, 320, 400, 512), (128, 256, 512, 768, 2048))
_FULL_GRID = (
    (64, 84, 96, 104, 112, 128, 160, 192, 256, 296, 320, 336, 368, 400, 448, 512, 640),
    (112, 128, 144, 192, 256, 384, 512, 576, 768, 1024, 2048),
)
_LOOP = Loop(PROFILES["8b"])
_PLOTTED = (200.0, 32)
"""SLO and start of the runs that are drawn."""


def scenario_of(itl_slo_ms: float, batch_size: int) -> Scenario:
    """One instance under more requests than it can serve."""
    whole_s = float(_LOOP.warm_up_s + _LOOP.measured_s)
    one = model("8b", 1, initial_batch_size=batch_size, itl_slo_s=itl_slo_ms / 1e3)
    return on_a100s(
        f"saturated 8b, {itl_slo_ms:g} ms, from {batch_size}",
        [replace(one, initial_step_token_budget=START_BUDGET)],
        traffic=[Traffic(model="8b", rate_per_s=40.0)],
        duration_s=whole_s,
        warmup_s=float(_LOOP.warm_up_s),
    )


def closed_loop(case: Case) -> Figures:
    """The limits after each decision, and what each interval yielded: seconds, tokens, mean ITL."""
    slo_s = float(case.labels["itl_slo_ms"]) / 1e3
    start = (int(case.labels["start"]), START_BUDGET)
    found = converge(_LOOP, str(case.labels["local"]), slo_s, start, case.seed)
    return {
        "settled": settled_after(found.limits),
        "limits": found.limits,
        "tokens_per_s": found.measured.tokens_per_s,
        "itl_attainment": found.measured.attained(slo_s),
        "intervals": [(each.seconds, each.output_tokens, each.itl_mean_s) for each in found.intervals],
    }


def static_quick(case: Case) -> Figures:
    """What each pair of a coarse grid yields."""
    return _static(case, _QUICK_GRID)


def static_full(case: Case) -> Figures:
    """What each pair of a fine grid yields."""
    return _static(case, _FULL_GRID)


def _static(case: Case, grid: tuple[Sequence[int], Sequence[int]]) -> Figures:
    found = swept(_LOOP, *grid, [slo_ms / 1e3 for slo_ms in SLOS_MS], case.seed)
    return {
        "pairs": [
            {
                "pair": pair,
                "tokens_per_s": each.tokens_per_s,
                "attained": [each.attained[slo_ms / 1e3] for slo_ms in SLOS_MS],
            }
            for pair, each in found.items()
        ]
    }


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Each autoscaler from each start under each SLO, and all static pairs."""
    found = []
    for seed in size.reported(quick=1, full=3):
        grid = static_quick if size.quick else static_full
        choice = PolicyChoice("fixed")
        found.append(Case(NAME, {"local": "static"}, scenario_of(200.0, 256), choice, seed, measure=grid))
        found += [
            Case(
                NAME,
                {"local": local, "itl_slo_ms": slo_ms, "start": float(start)},
                scenario_of(slo_ms, start),
                PolicyChoice("fixed", local=local),
                seed,
                measure=closed_loop,
            )
            for slo_ms in SLOS_MS
            for start in STARTS
            for local in LOCALS
        ]
    return found


def tell(outcomes: Sequence[Outcome]) -> Section:
    """How soon, how well, and the course of two runs."""
    static = {each.case.seed: _yields(each.figures) for each in outcomes if "pairs" in each.figures}
    loops = [each for each in outcomes if "pairs" not in each.figures]
    return Section(
        CONVERGENCE.title,
        (
            expected(
                "the batch size settles within some decisions, from whatever it starts, and then yields "
                "about what the best static pair does; no figure is published for this."
            ),
            "A decision a second. Settled: batch size within 10 % of the last one and the same budget from "
            "then on, however good these are. Arrived: from then on at least 90 % of the best static pair's "
            "tokens at 110 % of the SLO at most, in any 20 s. The best static pair is the one of a grid that "
            "keeps the SLO with the same seed, which is known in hindsight only.",
        ),
        (_table(loops, static),),
        _plots(loops),
        _findings(loops),
    )


def _table(loops: Sequence[Outcome], static: Mapping[int, Mapping[Pair, Yield]]) -> Table:
    rows = []
    for (slo, local), mine in grouped(loops, "itl_slo_ms", "local").items():
        bests = [_best(each, static) for each in mine]
        rows.append(
            row(
                f"{slo} ms",
                local,
                middle(each.figures["settled"] for each in mine),
                middle(
                    _arrived(each, best.tokens_per_s)
                    for each, best in zip(mine, bests, strict=True)
                    if best is not None
                ),
                middle(
                    (
                        each.figures["tokens_per_s"] / best.tokens_per_s
                        for each, best in zip(mine, bests, strict=True)
                        if best is not None
                    ),
                    ".3f",
                ),
                share(min(each.figures["itl_attainment"] for each in mine)),
                command=again(mine),
            )
        )
    columns = (
        "ITL SLO",
        "local",
        "settled, decisions",
        "arrived, decisions",
        "tokens/s of the best static pair's",
        "ITL attainment, least",
    )
    return table("Median, and least to most, over starts (32 and 256 slots) and seeds", columns, rows)


def _best(outcome: Outcome, static: Mapping[int, Mapping[Pair, Yield]]) -> Yield | None:
    found = static.get(outcome.case.seed)
    pair = None if found is None else best_pair([dict(found)], float(outcome.case.labels["itl_slo_ms"]) / 1e3)
    return None if found is None or pair is None else found[pair]


def _yields(figures: Figures) -> dict[Pair, Yield]:
    return {
        (each["pair"][0], each["pair"][1]): Yield(
            each["tokens_per_s"],
            {slo_ms / 1e3: share for slo_ms, share in zip(SLOS_MS, each["attained"], strict=True)},
        )
        for each in figures["pairs"]
    }


def _arrived(outcome: Outcome, tokens_per_s: float) -> int | None:
    intervals = [
        Tally(seconds=seconds, output_tokens=tokens, gaps=[(itl_s, tokens)])
        for seconds, tokens, itl_s in outcome.figures["intervals"]
    ]
    return arrived_after(intervals, tokens_per_s, float(outcome.case.labels["itl_slo_ms"]) / 1e3)


def _plots(loops: Sequence[Outcome]) -> tuple[Plot, ...]:
    slo_ms, start = _PLOTTED
    drawn: dict[str, Outcome] = {}
    for each in loops:
        if (each.case.labels["itl_slo_ms"], each.case.labels["start"]) == (slo_ms, start):
            drawn.setdefault(str(each.case.labels["local"]), each)
    series = tuple(
        Series(
            local,
            tuple(Point(float(at), limits[0]) for at, limits in enumerate(each.figures["limits"], start=1)),
        )
        for local, each in drawn.items()
    )
    title = f"Batch size, ITL SLO {slo_ms:g} ms, from {start} slots"
    return (Plot(NAME, title, Axis("decisions (s)"), Axis("slots", least=0.0), series, "steps"),)


def _findings(loops: Sequence[Outcome]) -> tuple[Finding, ...]:
    found = []
    for (local,), mine in grouped(loops, "local").items():
        calm = [each for each in mine if len(each.figures["limits"]) - each.figures["settled"] >= CALM_S]
        found.append(
            Finding(
                f"the batch size settles: {local}",
                f"limits that stay for the last {CALM_S} s, from either start, under every SLO",
                f"{len(calm)} of {len(mine)} runs; settled after "
                f"{middle(each.figures['settled'] for each in mine)} decisions",
                "met" if len(calm) == len(mine) else "not met",
                ""
                if len(calm) == len(mine)
                else f"in the others limits still change: {_unsettled(mine, calm)}",
            )
        )
    return tuple(found)


def _unsettled(mine: Sequence[Outcome], calm: Sequence[Outcome]) -> str:
    slos = {float(each.case.labels["itl_slo_ms"]) for each in mine if each not in calm}
    return "ITL SLO " + ", ".join(f"{slo:g} ms" for slo in sorted(slos))


CONVERGENCE = Experiment(
    NAME,
    "Local convergence",
    "How many decisions, one a second, a local autoscaler takes until the batch size of a saturated engine "
    "settles, and what it yields then.",
    cases,
    tell,
)
