"""The model's spec as the agent wrote it, and what it means to the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from chiron.config import ConfigError
from chiron.v1 import cluster_pb2, types_pb2
from services.worker.engines.base import EngineConfig

DEFAULT_MAX_BATCH_SIZE = 256


def read_spec(path: Path) -> cluster_pb2.ModelSpec:
    """Reads a ModelSpec from protobuf JSON. Raises ConfigError that names the file and the field."""
    spec = cluster_pb2.ModelSpec()
    try:
        json_format.Parse(path.read_text(encoding="utf-8"), spec)
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise ConfigError(f"spec_file {path}: {' '.join(str(error).split())}") from error
    for field in ("name", "engine"):
        if not getattr(spec, field):
            raise ConfigError(f"spec_file {path}: {field} is required")
    ceiling = spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    if spec.initial_batch_size > ceiling:
        raise ConfigError(
            f"spec_file {path}: initial_batch_size {spec.initial_batch_size} is above the ceiling {ceiling}"
        )
    return spec


def engine_config(spec: cluster_pb2.ModelSpec, instance_id: str) -> EngineConfig:
    """What the spec asks of the engine."""
    ceiling = spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    return EngineConfig(
        instance_id=instance_id,
        model=spec.name,
        weights=spec.weights,
        revision=spec.revision,
        gpus=max(1, spec.gpus_per_instance),
        max_batch_size=ceiling,
        batch_size=spec.initial_batch_size or ceiling,
        step_token_budget=spec.initial_step_token_budget,
        chat_template=spec.chat_template,
        adapters={adapter.name: adapter.path for adapter in spec.adapters},
        engine_args=to_python(spec.engine_args),
        tool_parser=spec.tool_parser,
        reasoning_parser=spec.reasoning_parser,
    )


def default_slo(spec: cluster_pb2.ModelSpec, batch: bool) -> types_pb2.Slo:
    """The spec's SLO for a class."""
    return spec.slo_defaults.batch if batch else spec.slo_defaults.interactive


def to_python(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as Python values; whole numbers become integers, which a Struct cannot tell apart."""
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return to_python(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)
