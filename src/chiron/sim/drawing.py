"""Draws a scenario's workload from its sources."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chiron.config import ConfigError
from chiron.engine import Profile
from chiron.sim.demand import Demand, fit_to_context, merge
from chiron.sim.lengths import whole_tokens
from chiron.sim.settings import SimModel
from chiron.sim.shared_prefixes import shared_prefixes
from chiron.sim.sources import Backlog, InvalidSourceError, Replay, Traffic
from chiron.sim.trace_formats import TraceError
from chiron.sim.traces import BadRow
from chiron.sim.workload import Workload

_STREAMS = 0x57_4F_52_4B
"""Keeps the workload's random streams apart from those that the simulator makes from the same seed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of making a workload."""

    workload: Workload
    shortened: int = 0
    """Requests cut to the model's longest context."""
    bad_rows: tuple[BadRow, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows of traces without a request to serve: how many, by the reason."""


def draw(
    sources: Sequence[Traffic | Backlog | Replay],
    models: Sequence[SimModel],
    seed: int,
    duration_s: float,
    output_drift: float,
    file: Path,
) -> Reading:
    """All requests of these sources.

    Each source has random streams of its own for arrivals, lengths and shared beginnings: changing one leaves
    the others' requests as they are.

    Args:
        sources: where requests come from.
        models: whom they are for.
        seed: of the random streams.
        duration_s: traffic arrives until then.
        output_drift: share by which output lengths have grown at the end.
        file: the scenario's, for errors and relative paths.

    Raises:
        ConfigError: a trace that cannot be used, or too many requests.
    """
    demands: list[Demand] = []
    bad_rows: list[BadRow] = []
    skipped = Counter[str]()
    indexes = {model.name: index for index, model in enumerate(models)}
    for number, source in enumerate(sources):
        arrivals, lengths, beginnings = (
            np.random.default_rng((_STREAMS, seed, number, use)) for use in range(3)
        )
        index = indexes[source.model]
        profile = models[index].profile
        try:
            if isinstance(source, Traffic):
                demand = source.demand(index, duration_s, arrivals, lengths)
            elif isinstance(source, Backlog):
                demand = source.demand(index, arrivals, lengths)
            else:
                trace = source.read(file.parent)
                demand = source.demand(index, profile, trace, arrivals)
                bad_rows += trace.bad_rows
                skipped.update(trace.skipped)
        except TraceError as error:
            raise ConfigError(str(error)) from error
        except InvalidSourceError as error:
            raise ConfigError(f"{file}: {error}") from error
        if not isinstance(source, Replay) and source.shared_prefixes:
            prefix = shared_prefixes(
                demand.prompt_tokens,
                source.shared_prefixes,
                source.prefix_share,
                profile.block_size,
                number,
                beginnings,
            )
            demand = dataclasses.replace(demand, prefix=prefix)
        tenant = "" if isinstance(source, Backlog) else source.tenant
        demands.append(dataclasses.replace(demand, refuse_late=source.refuse_late, tenant=tenant))
    if output_drift:
        demands = _drifting(demands, output_drift, duration_s)
    fitted = [_fitted(demand, models[demand.model].profile) for demand in demands]
    workload = merge([demand for demand, _ in fitted])
    return Reading(workload, sum(cut for _, cut in fitted), tuple(bad_rows), dict(skipped))


def _drifting(demands: Sequence[Demand], output_drift: float, duration_s: float) -> list[Demand]:
    end_s = max([duration_s, *(float(demand.arrival_s.max()) for demand in demands if len(demand))])
    if not end_s:
        return list(demands)
    return [
        dataclasses.replace(
            demand,
            output_tokens=whole_tokens(demand.output_tokens * (1 + output_drift * demand.arrival_s / end_s)),
        )
        for demand in demands
    ]


def _fitted(demand: Demand, profile: Profile) -> tuple[Demand, int]:
    prompt, output, cut = fit_to_context(demand.prompt_tokens, demand.output_tokens, longest(profile))
    if not cut:
        return demand, 0
    prefix = demand.prefix
    if prefix is not None:
        blocks = prompt // profile.block_size
        prefix = tuple(given[: int(most)] for given, most in zip(prefix, blocks, strict=True))
    return dataclasses.replace(demand, prompt_tokens=prompt, output_tokens=output, prefix=prefix), cut


def longest(profile: Profile) -> int:
    """Most tokens of prompt and output together that an engine of the profile takes."""
    drafts = 0 if profile.speculation is None else profile.speculation.draft_tokens
    return min(profile.max_context_tokens, profile.kv_blocks * profile.block_size - drafts)
