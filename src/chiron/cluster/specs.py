"""Reads model specs from a TOML file: one table `[models.NAME]` per model, keys as in ModelSpec."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import time
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from chiron.config import ConfigError
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

ROLES = {
    "interactive": types_pb2.ROLE_INTERACTIVE,
    "mixed": types_pb2.ROLE_MIXED,
    "batch": types_pb2.ROLE_BATCH,
}
_TEXTS = ("weights", "revision", "engine", "chat_template", "tool_parser", "reasoning_parser")
_COUNTS = (
    "gpus_per_instance",
    "min_instances",
    "max_instances",
    "max_batch_size",
    "initial_batch_size",
    "initial_step_token_budget",
)
_TABLES = ("engine_args", "slo_defaults", "adapters", "roll", "autoscaling")
KEYS = (*_TEXTS, *_COUNTS, *_TABLES, "role", "priority", "drain_timeout_s")
"""Every key of a model's table."""
_SLO_KEYS = ("ttft_ms", "itl_ms", "deadline_s")
_ROLL_KEYS = ("hold_s", "max_unavailable")
_AUTOSCALING_KEYS = tuple(field.name for field in pb.AutoscalingSpec.DESCRIPTOR.fields)
_MOST_COUNT = 2**32 - 1
"""Counts of a ModelSpec have 32 bits."""
_MOST_PRIORITY = 2**31 - 1


def read_models(file: Path) -> list[pb.ModelSpec]:
    """The specs of a file, in its order; `gpus_per_instance` and `min_instances` default to 1.

    Raises:
        ConfigError: an unreadable file, an unknown key, or a value of the wrong type, by file and key.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    for key in document:
        if key != "models":
            raise ConfigError(f"{file}: unknown key {key!r}; a model is a table [models.NAME]")
    models = document.get("models")
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"{file}: no model; a model is a table [models.NAME]")
    return [_model(name, table, f"{file} [models.{name}]") for name, table in models.items()]


def read_model_files(files: Sequence[Path]) -> list[pb.ModelSpec]:
    """The specs of all files, in the order given.

    Raises:
        ConfigError: as `read_models`, and for a model that two files describe.
    """
    found: dict[str, Path] = {}
    specs: list[pb.ModelSpec] = []
    for file in files:
        for spec in read_models(file):
            if spec.name in found:
                raise ConfigError(
                    f"{file} [models.{spec.name}]: model {spec.name!r} is in {found[spec.name]} too"
                )
            found[spec.name] = file
            specs.append(spec)
    return specs


def _model(name: str, table: Any, where: str) -> pb.ModelSpec:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a table")
    _only(table, KEYS, where)
    if "engine" not in table:
        raise ConfigError(f"{where}: key 'engine' is required: vllm, sim or module:Class")
    spec = pb.ModelSpec(name=name, gpus_per_instance=1, min_instances=1)
    for key, value in table.items():
        if key in _TEXTS:
            setattr(spec, key, _text(value, key, where))
        elif key in _COUNTS:
            setattr(spec, key, _count(value, key, where))
        elif key == "priority":
            spec.priority = _count(value, key, where, least=-_MOST_PRIORITY, most=_MOST_PRIORITY)
        elif key == "drain_timeout_s":
            spec.drain_timeout_s = _seconds(value, key, where)
        elif key == "roll":
            _roll(spec.roll, _table(value, key, where), where)
        elif key == "autoscaling":
            _autoscaling(spec.autoscaling, _table(value, key, where), where)
        elif key == "role":
            if value not in ROLES:
                raise ConfigError(f"{where}: 'role' must be one of {', '.join(ROLES)}, not {value!r}")
            spec.role = ROLES[value]
        elif key == "engine_args":
            spec.engine_args.CopyFrom(_engine_args(_table(value, key, where), where))
        elif key == "adapters":
            for adapter, path in _table(value, key, where).items():
                spec.adapters.add(name=adapter, path=_text(path, f"adapters.{adapter}", where))
        else:
            _slo_defaults(spec.slo_defaults, _table(value, key, where), where)
    return spec


def _engine_args(table: Mapping[str, Any], where: str) -> struct_pb2.Struct:
    arguments = struct_pb2.Struct()
    try:
        json_format.ParseDict(dict(table), arguments)
    except json_format.ParseError as error:
        raise ConfigError(f"{where}: 'engine_args': {error}") from error
    return arguments


def _slo_defaults(defaults: pb.SloDefaults, table: Mapping[str, Any], where: str) -> None:
    _only(table, ("interactive", "batch"), where, "slo_defaults.")
    for kind, target in (("interactive", defaults.interactive), ("batch", defaults.batch)):
        if kind not in table:
            continue
        path = f"slo_defaults.{kind}"
        values = _table(table[kind], path, where)
        _only(values, (*_SLO_KEYS, "refuse_if_late"), where, f"{path}.")
        for key, value in values.items():
            if key == "refuse_if_late":
                target.refuse_if_late = _flag(value, f"{path}.{key}", where)
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{where}: '{path}.{key}' must be a number > 0, not {value!r}")
            setattr(target, key, float(value))


def _roll(settings: pb.RollSettings, table: Mapping[str, Any], where: str) -> None:
    _only(table, _ROLL_KEYS, where, "roll.")
    if "hold_s" in table:
        settings.hold_s = _seconds(table["hold_s"], "roll.hold_s", where)
    if "max_unavailable" in table:
        settings.max_unavailable = _count(table["max_unavailable"], "roll.max_unavailable", where)


def _autoscaling(settings: pb.AutoscalingSpec, table: Mapping[str, Any], where: str) -> None:
    _only(table, _AUTOSCALING_KEYS, where, "autoscaling.")
    minimums = table.get("scheduled_minimums")
    for one in minimums if isinstance(minimums, list) else ():
        for key in ("begins", "ends"):
            # TOML has times of its own, which are written without quotes.
            if isinstance(one, dict) and isinstance(one.get(key), time):
                path = f"autoscaling.scheduled_minimums.{key}"
                raise ConfigError(f"{where}: '{path}' must be text such as \"08:00\", in quotes")
    try:
        json_format.ParseDict(dict(table), settings)
    except json_format.ParseError as error:
        raise ConfigError(f"{where}: 'autoscaling': {error}") from error


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str, prefix: str = "") -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'; known are {', '.join(sorted(known))}")


def _table(value: Any, key: str, where: str) -> Mapping[str, Any]:
    return _typed(value, lambda v: isinstance(v, dict), "a table", key, where)  # type: ignore[no-any-return]


def _text(value: Any, key: str, where: str) -> str:
    return str(_typed(value, lambda v: isinstance(v, str), "text", key, where))


def _count(value: Any, key: str, where: str, *, least: int = 0, most: int = _MOST_COUNT) -> int:
    def valid(v: Any) -> bool:
        return isinstance(v, int) and not isinstance(v, bool) and least <= v <= most

    return int(_typed(value, valid, f"a whole number from {least} to {most}", key, where))


def _flag(value: Any, key: str, where: str) -> bool:
    return bool(_typed(value, lambda v: isinstance(v, bool), "true or false", key, where))


def _seconds(value: Any, key: str, where: str) -> float:
    def valid(v: Any) -> bool:
        return isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < math.inf

    return float(_typed(value, valid, "a number of seconds >= 0", key, where))


def _typed(value: Any, valid: Callable[[Any], bool], what: str, key: str, where: str) -> Any:
    if not valid(value):
        raise ConfigError(f"{where}: '{key}' must be {what}, not {value!r}")
    return value
