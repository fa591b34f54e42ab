"""The physical ceiling of both models, which every headline stands beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan, nan

import numpy as np

from chiron.sim.ceiling import BATCH_SIZES, STEP_TOKEN_BUDGETS, ceilings
from chiron.sim.demand import fit_to_context
from chiron.sim.lengths import LENGTH_MODELS
from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Size
from chiron.sim.paper.experiments.rate_tables import again
from chiron.sim.paper.sections import Row, Table, number, row, share, table
from chiron.sim.paper.speed import expected_requests
from chiron.sim.paper.workloads import PROFILES, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario, longest
from chiron.sim.sources import Traffic

WHAT = "ceiling"
ITL_SLOS_S = (0.05, 0.2, 2.0)
"""Strict, the paper's for interactive requests, the paper's for batch work."""
SEED = 1
_REQUESTS = 6000
_QUICK_SIZES = (64, 96, 128, 256, 320, 384, 512, 1024)
_QUICK_BUDGETS = (256, 512, 1024, 2048, 8192)


def ceiling_cases(experiment: str, size: Size) -> list[Case]:
    """One for each model: all pairs of a grid of batch sizes and budgets, at ShareGPT lengths."""
    measure = quick_ceiling if size.quick else full_ceiling
    return [
        Case(
            experiment,
            {"what": WHAT, "model": name},
            # Only its size matters, for the plan: about as long as all pairs take.
            on_a100s(
                f"physical ceiling, {name}",
                [model(name, 1)],
                traffic=[Traffic(model=name, rate_per_s=100.0)],
                duration_s=800.0 if size.quick else 3000.0,
            ),
            PolicyChoice("chiron"),
            SEED,
            measure=measure,
        )
        for name in PROFILES
    ]


def quick_ceiling(case: Case) -> Figures:
    """Of a coarse grid."""
    return _ceiling(case, _QUICK_SIZES, _QUICK_BUDGETS)


def full_ceiling(case: Case) -> Figures:
    """Of a fine grid."""
    return _ceiling(case, BATCH_SIZES, STEP_TOKEN_BUDGETS)


def _ceiling(case: Case, batch_sizes: Sequence[int], budgets: Sequence[int]) -> Figures:
    profile = case.scenario.settings.models[0].profile
    drawn = LENGTH_MODELS["sharegpt"].sample(np.random.default_rng(case.seed), _REQUESTS)
    prompt, output, _ = fit_to_context(*drawn, longest(profile))
    found = ceilings(profile, prompt, output, ITL_SLOS_S, batch_sizes=batch_sizes, budgets=budgets)
    return {
        "slos": [
            {
                "itl_slo_s": each.itl_slo_s,
                "best": each.best and each.best.requests_per_gpu_s,
                "pair": each.best and (each.best.batch_size, each.best.step_token_budget),
                "static": each.static.requests_per_gpu_s,
                "static_pair": (each.static.batch_size, each.static.step_token_budget),
                "static_attains": each.static.attained(each.itl_slo_s),
                "gain": each.gain,
                "bound": each.bound_requests_per_gpu_s,
            }
            for each in found
        ]
    }


Ceilings = Mapping[tuple[str, float], float]
"""(model, ITL SLO in seconds) → best requests per GPU and second."""


def best_rates(outcomes: Sequence[Outcome]) -> Ceilings:
    """Of the ceiling cases among these outcomes."""
    return {
        (str(each.case.labels["model"]), slo["itl_slo_s"]): slo["best"]
        for each in outcomes
        if each.case.labels["what"] == WHAT
        for slo in each.figures["slos"]
        if slo["best"] is not None
    }


def ceiling_per_gpu_s(scenario: Scenario, best: Ceilings) -> float | None:
    """Requests of the scenario's mix per GPU and second at the ceiling; None: one of its models has none.

    Interactive requests count at the interactive ITL SLO, batch requests at the batch one.
    """
    models = {each.name: each for each in scenario.settings.models}
    bare = replace(scenario, traffic=(), backlogs=(), replays=())
    requests = gpu_s = 0.0
    for source in scenario.traffic:
        one = models[source.model]
        slo_s = one.batch_itl_slo_s if source.request_class == "batch" else one.itl_slo_s
        rate = best.get((source.model, slo_s))
        count = expected_requests(replace(bare, traffic=(source,)))
        requests += count
        gpu_s += count / rate if rate else nan
    for backlog in scenario.backlogs:
        rate = best.get((backlog.model, models[backlog.model].batch_itl_slo_s))
        requests += backlog.requests
        gpu_s += backlog.requests / rate if rate else nan
    return None if not gpu_s or isnan(gpu_s) else requests / gpu_s


def ceiling_table(outcomes: Sequence[Outcome]) -> Table:
    """Best and static pair of each model under each ITL SLO, which the static one need not keep."""
    rows: list[Row] = []
    for each in outcomes:
        if each.case.labels["what"] != WHAT:
            continue
        rows += [
            row(
                str(each.case.labels["model"]),
                f"{1e3 * slo['itl_slo_s']:g} ms",
                number(slo["static"]),
                "{} / {:,}".format(*slo["static_pair"]),
                share(slo["static_attains"]),
                number(slo["best"]),
                "no pair keeps it" if slo["pair"] is None else "{} / {:,}".format(*slo["pair"]),
                None if slo["gain"] is None else f"{slo['gain'] - 1:+.1%}",
                number(slo["bound"]),
                command=again([each]),
            )
            for slo in each.figures["slos"]
        ]
    columns = (
        "model",
        "ITL SLO",
        "static, requests per GPU and s",
        "slots / budget",
        "its requests within the SLO",
        "best",
        "slots / budget",
        "gain",
        "lower bound's",
    )
    return table("Physical ceiling: an engine that never idles, at ShareGPT lengths", columns, rows)
