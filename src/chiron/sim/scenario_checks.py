"""What of a scenario cannot be, although each key by itself can. Errors name the key, the table, the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chiron.config import ConfigError
from chiron.engine.step_time import step_time_table
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.sources import SHAPE_KEYS, Backlog, Replay, Traffic

MOST_GPUS = 1_000_000
"""Of a cluster."""


def check_model(model: SimModel, longest: int, where: str) -> None:
    """Raises ConfigError for first limits beyond the last ones, and an engine without room for a request.

    Args:
        model: what is checked.
        longest: most tokens of prompt and output together that its engine takes.
        where: file and table.
    """
    if longest < 2:
        key = "max_context_tokens" if model.profile.max_context_tokens < 2 else "kv_capacity_tokens"
        raise ConfigError(f"{where} engine: {key!r}: must hold a token of prompt and one of output, so 2")
    first = sum(model.initial.values())
    if model.max_instances and first > model.max_instances:
        raise ConfigError(
            f"{where}: 'initial': must not exceed max_instances = {model.max_instances}, not {first}"
        )
    most = model.max_step_token_budget
    if model.initial_step_token_budget > most:
        raise ConfigError(
            f"{where}: 'initial_step_token_budget': must not exceed max_step_token_budget = {most}, "
            f"not {model.initial_step_token_budget}"
        )
    if not model.initial_step_token_budget and model.profile.default_step_token_budget > most:
        raise ConfigError(
            f"{where}: 'max_step_token_budget': must not be below the "
            f"{model.profile.default_step_token_budget} tokens that instances start with, not {most}; for "
            "fewer, set initial_step_token_budget too"
        )


def check_room(settings: SimSettings, where: str) -> None:
    """Raises ConfigError unless the instances that there must be, and one of each model, fit the GPUs."""
    there_are = sum(kind.nodes * kind.gpus_per_node for kind in settings.gpu_types)
    if there_are > MOST_GPUS:
        raise ConfigError(
            f"{where} [[cluster.gpus]]: 'nodes': with gpus_per_node {there_are:,} GPUs, at most {MOST_GPUS:,}"
        )
    most = min(there_are, settings.gpu_budget or there_are)
    for model in settings.models:
        if model.profile.gpus > most:
            raise ConfigError(
                f"{where} [cluster]: 'gpu_budget': {most} GPUs, an instance of {model.name} needs "
                f"{model.profile.gpus}"
            )
    for key, counts in (
        ("initial", [sum(model.initial.values()) for model in settings.models]),
        ("min_instances", [model.min_instances for model in settings.models]),
    ):
        needed = sum(count * model.profile.gpus for count, model in zip(counts, settings.models, strict=True))
        if needed > most:
            what = "first" if key == "initial" else "fewest"
            raise ConfigError(f"{where}: {key!r}: the {what} instances need {needed} GPUs, there are {most}")


def check_gpu_types(models: Sequence[SimModel], gpu_types: Sequence[GpuType], where: str) -> None:
    """Raises ConfigError for a GPU type that is there twice or unknown, and nodes that hold no instance."""
    kinds: dict[str, tuple[int, GpuType]] = {}
    for number, kind in enumerate(gpu_types, start=1):
        if kind.name in kinds:
            raise ConfigError(f"{where} [[cluster.gpus]] #{number}: 'name': {kind.name!r} is there twice")
        kinds[kind.name] = number, kind
    for model in models:
        if model.gpu_type and model.gpu_type not in kinds:
            raise ConfigError(
                f"{where} [models.{model.name}]: 'gpu_type': unknown {model.gpu_type!r}; "
                f"known are {', '.join(kinds)}"
            )
        number, kind = kinds[model.gpu_type or gpu_types[0].name]
        if model.profile.gpus > kind.gpus_per_node:
            raise ConfigError(
                f"{where} [[cluster.gpus]] #{number}: 'gpus_per_node': {model.name!r} needs "
                f"{model.profile.gpus} GPUs on one node, {kind.name!r} has {kind.gpus_per_node}"
            )


def check_slos(settings: SimSettings, where: str) -> None:
    """Raises ConfigError for an SLO that an idle engine cannot keep."""
    for model in settings.models:
        for key in ("ttft_slo_s", "itl_slo_s", "batch_itl_slo_s"):
            _check_time(f"{where} [models.{model.name}]: {key}", getattr(model, key), model, settings)


def check_deadline(
    source: Traffic | Backlog | Replay, model: SimModel, settings: SimSettings, where: str
) -> None:
    """Raises ConfigError for a deadline that an idle engine cannot keep; `where`: file and table."""
    if source.deadline_in_s is not None:
        _check_time(f"{where}: 'deadline_in_s'", source.deadline_in_s, model, settings)


def _check_time(about: str, promised_s: float, model: SimModel, settings: SimSettings) -> None:
    shortest_s = step_time_table(model.profile.step_time_ms).seconds(1) * settings.step_time_factor
    if promised_s < shortest_s:
        slower = ""
        if settings.step_time_factor != 1:
            slower = f" with step_time_factor {settings.step_time_factor:g}"
        raise ConfigError(
            f"{about}: {promised_s:g} s can never be kept: one step of {model.profile.name} over one token "
            f"takes {shortest_s:.4g} s{slower}"
        )


def check_traffic(traffic: Sequence[Traffic], duration_s: float | None, where: str) -> None:
    """Raises ConfigError for traffic without a time in which it arrives; None: the scenario tells none."""
    if not traffic:
        return
    if duration_s is None:
        raise ConfigError(f"{where}: key 'duration_s' is required with [[traffic]]")
    if not duration_s:
        raise ConfigError(f"{where}: 'duration_s' must be above 0 with [[traffic]]")
    for number, source in enumerate(traffic, start=1):
        if source.start_s >= duration_s:
            raise ConfigError(
                f"{where} [[traffic]] #{number}: 'start_s' must be below duration_s = {duration_s:g}, "
                f"not {source.start_s:g}"
            )


def check_shape_keys(table: Mapping[str, Any], shape: str, where: str) -> None:
    """Raises ConfigError for a key that means nothing for the shape of the traffic."""
    for owner, keys in SHAPE_KEYS.items():
        for key in keys:
            if key in table and owner != shape:
                raise ConfigError(f"{where}: {key!r} goes with shape = {owner!r}, not {shape!r}")
