"""A cluster that was recorded, as one may plan for it: another fleet, other times, but the same promises."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection

from chiron.sim.live_times import LiveTimes
from chiron.sim.recorded.requests import RecordedRequest
from chiron.sim.scenario import Scenario
from chiron.sim.settings import LARGEST, SimModel


def freed(scenario: Scenario, autoscaled: Collection[str]) -> Scenario:
    """The recorded cluster without what held its fleet as it was.

    Models that were not autoscaled have no least or most instances, others no most. When the cluster ticked,
    reported and loaded is forgotten, for another fleet would have done other things at other times; the load
    times that it knew of stay.
    """
    settings = scenario.settings
    models = tuple(
        dataclasses.replace(
            model, max_instances=0, min_instances=model.min_instances if model.name in autoscaled else 0
        )
        for model in settings.models
    )
    live = LiveTimes(
        known_loads_s=settings.live.known_loads_s,
        presumed_load_s=settings.live.presumed_load_s,
        drain_notice_s=settings.live.drain_notice_s,
    )
    return dataclasses.replace(scenario, settings=dataclasses.replace(settings, models=models, live=live))


def promised(scenario: Scenario, requests: Collection[RecordedRequest]) -> tuple[Scenario, list[str]]:
    """The SLOs that most interactive requests to each model had, for a simulation has one for all of them.

    Returns what is to be told about it as well. A model whose requests had none keeps what its cluster says.
    """
    models: list[SimModel] = []
    told: list[str] = []
    for model in scenario.settings.models:
        had = Counter(
            (one.ttft_slo_ms, one.itl_slo_ms) for one in requests if one.model == model.name and not one.batch
        )
        known = Counter({slo: count for slo, count in had.items() if slo != (0.0, 0.0)})
        if known:
            ((ttft_ms, itl_ms), most) = known.most_common(1)[0]
            model = dataclasses.replace(
                model,
                ttft_slo_s=ttft_ms / 1e3 if ttft_ms else LARGEST,
                itl_slo_s=itl_ms / 1e3 if itl_ms else LARGEST,
            )
            if others := had.total() - most:
                told.append(
                    f"{others} of {had.total()} interactive requests to {model.name!r} had another SLO than "
                    f"most; all are judged by {_text(ttft_ms, itl_ms)}"
                )
        models.append(model)
    settings = dataclasses.replace(scenario.settings, models=tuple(models))
    return dataclasses.replace(scenario, settings=settings), told


def without_slo(scenario: Scenario, requests: Collection[RecordedRequest]) -> list[str]:
    """Models with interactive requests to which nothing is promised, so that any number of GPUs would do."""
    used = {one.model for one in requests if not one.batch}
    return [
        model.name
        for model in scenario.settings.models
        if model.name in used and model.ttft_slo_s >= LARGEST and model.itl_slo_s >= LARGEST
    ]


def _text(ttft_ms: float, itl_ms: float) -> str:
    parts = [f"{name} {ms:g} ms" for name, ms in (("TTFT", ttft_ms), ("ITL", itl_ms)) if ms]
    return " and ".join(parts)
