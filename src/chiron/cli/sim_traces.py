"""The scenario that the options of a recorded trace make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiron.cli.sim_options import TraceOptions
from chiron.config import ConfigError
from chiron.sim.scenario import Scenario, scenario_from

_COMMAND_LINE = "command line"
_OPTION_OF_KEY = {
    "format": "format",
    "rate_per_s": "rate",
    "scaling": "scaling",
    "limit": "limit",
    "profile": "profile",
    "max_context_tokens": "max-context",
    "nodes": "nodes",
    "gpu_budget": "gpus",
    "gpus_per_node": "gpus",
    "price_per_gpu_hour": "price",
    "initial": "instances",
    "ttft_slo_s": "slo-ttft",
    "itl_slo_s": "slo-itl",
    "deadline_in_s": "deadline",
}
"""Options of a trace by the keys of a scenario."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Which trace is served on what."""

    trace: Path
    trace_format: str
    rate_per_s: float | None
    scaling: str
    limit: int
    strict: bool
    profile: str
    max_context_tokens: int | None
    nodes: int
    gpus: int
    price: float | None
    instances: int
    slo_ttft_ms: float
    slo_itl_ms: float
    deadline_in_s: float | None

    @classmethod
    def of(
        cls, trace: Path, trace_format: str, given: TraceOptions, slo_ttft_ms: float, slo_itl_ms: float
    ) -> ReplayOptions:
        """What the command line says of a trace."""
        return cls(
            trace=trace,
            trace_format=trace_format,
            rate_per_s=given.rate,
            scaling=given.scaling,
            limit=given.limit,
            strict=given.strict,
            profile=given.profile or "llama3-8b@a100",
            max_context_tokens=given.max_context,
            nodes=given.nodes,
            gpus=given.gpus,
            price=given.price,
            instances=given.instances,
            slo_ttft_ms=slo_ttft_ms,
            slo_itl_ms=slo_itl_ms,
            deadline_in_s=given.deadline,
        )


def replayed_scenario(options: ReplayOptions) -> Scenario:
    """The trace on the cluster of the options. Raises ConfigError; see `naming_options`."""
    engine = {} if options.max_context_tokens is None else {"max_context_tokens": options.max_context_tokens}
    source: dict[str, Any] = {
        "file": str(options.trace.absolute()),
        "format": options.trace_format,
        "scaling": options.scaling,
        "limit": options.limit,
        "strict": options.strict,
    }
    if options.rate_per_s is not None:
        source["rate_per_s"] = options.rate_per_s
    if options.deadline_in_s is not None:
        source |= {"request_class": "batch", "deadline_in_s": options.deadline_in_s}
    model = {
        "profile": options.profile,
        "engine": engine,
        "initial": {"mixed": options.instances},
        "ttft_slo_s": options.slo_ttft_ms / 1e3,
        "itl_slo_s": options.slo_itl_ms / 1e3,
    }
    gpus: dict[str, Any] = {"name": "gpu", "nodes": options.nodes, "gpus_per_node": options.gpus}
    if options.price is not None:
        gpus["price_per_gpu_hour"] = options.price
    document = {
        "name": f"replay of {options.trace.name}",
        "cluster": {"gpus": [gpus]},
        "models": {"model": model},
        "replay": [source],
    }
    return scenario_from(document, Path(_COMMAND_LINE))


@contextmanager
def naming_options() -> Iterator[None]:
    """An error in a key of the scenario that the options make names the option instead."""
    try:
        yield
    except ConfigError as error:
        found = re.match(rf"{_COMMAND_LINE}[^:]*: '?(\w+)'?(?=\W)", str(error))
        option = None if found is None else _OPTION_OF_KEY.get(found[1])
        if found is None or option is None:
            raise
        raise ConfigError(f"--{option}{str(error)[found.end() :]}") from error
