"""From an engine's configuration to vLLM's engine arguments."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiron.telemetry.tracing import export_wanted
from services.worker.engines.base import EngineConfig, EngineLoadError
from services.worker.engines.vllm.compat import vllm_version

_FROM_THE_SPEC = {
    "model": "weights",
    "revision": "revision",
    "served_model_name": "name",
    "max_num_seqs": "max_batch_size",
    "max_num_active_seqs": "initial_batch_size",
    "max_num_scheduled_tokens": "initial_step_token_budget",
    "enable_lora": "adapters",
    "reasoning_parser": "reasoning_parser",
}
"""Arguments that a field of the model's spec sets."""

_FIXED = {
    "scheduler_cls": "Chiron's own scheduler is used",
    "scheduling_policy": "it is always `priority`",
    "data_parallel_size": "run more instances instead",
    "otlp_traces_endpoint": "the OTEL_* variables set it",
    "stream_interval": "the worker coalesces tokens itself",
    "disable_log_stats": "the worker reads the statistics itself",
}
"""Arguments that are not the operator's to set, and why."""

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(config: EngineConfig, environ: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs. Raises EngineLoadError naming a bad argument."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = {each.name for each in dataclasses.fields(AsyncEngineArgs)}
    given = {name: whole_numbers(value) for name, value in config.engine_args.items()}
    for name in given:
        _check_name(name, known)
    pipeline = given.get("pipeline_parallel_size", 1)
    arguments: dict[str, Any] = {
        "enable_prefix_caching": True,
        "tensor_parallel_size": max(1, config.gpus // pipeline),
        "enable_sleep_mode": current_platform.is_sleep_mode_available(),
        **given,
        "model": config.weights,
        "served_model_name": [config.model],
        "max_num_seqs": config.max_batch_size,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
    }
    if arguments["tensor_parallel_size"] * pipeline != max(1, config.gpus):
        raise EngineLoadError(
            f"engine_args: tensor_parallel_size × pipeline_parallel_size must be the {config.gpus} GPUs of "
            f"the instance, not {arguments['tensor_parallel_size']} × {pipeline}"
        )
    if config.revision and not Path(config.weights).exists():
        arguments["revision"] = config.revision
    if config.reasoning_parser:
        arguments["reasoning_parser"] = config.reasoning_parser
    if config.adapters:
        arguments["enable_lora"] = True
        arguments.setdefault("max_loras", len(config.adapters))
        arguments.setdefault("max_lora_rank", _lora_rank(config.adapters))
    if export_wanted(environ):
        arguments["otlp_traces_endpoint"] = (
            environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
        )
    return arguments


def _check_name(name: str, known: set[str]) -> None:
    if name in _FROM_THE_SPEC:
        raise EngineLoadError(f"engine_args.{name}: the spec's field {_FROM_THE_SPEC[name]} sets this")
    if name in _FIXED:
        raise EngineLoadError(f"engine_args.{name} cannot be set: {_FIXED[name]}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise EngineLoadError(f"engine_args.{name}: vLLM {vllm_version()} has no such argument{hint}")


def whole_numbers(value: Any) -> Any:
    """Turns whole floats into integers at any depth: a protobuf Struct knows only doubles."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [whole_numbers(each) for each in value]
    return value


def _lora_rank(adapters: Mapping[str, str]) -> int:
    """The smallest rank that vLLM can allocate for and that holds every adapter."""
    rank = max(_adapter_rank(name, path) for name, path in adapters.items())
    fitting = [allowed for allowed in _LORA_RANKS if allowed >= rank]
    if not fitting:
        raise EngineLoadError(f"adapters: rank {rank} is above vLLM's largest, {_LORA_RANKS[-1]}")
    return fitting[0]


def _adapter_rank(name: str, path: str) -> int:
    file = Path(path) / "adapter_config.json"
    try:
        return int(json.loads(file.read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineLoadError(f"adapter {name!r}: cannot read the rank `r` from {file}: {error}") from error
