"""Checks that this vLLM has the private names that the engine builds on."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

_NAMES = (
    ("vllm.v1.core.sched.scheduler", "Scheduler", "_preempt_request"),
    ("vllm.v1.core.sched.scheduler", "Scheduler", "get_request_counts"),
    ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "_preempt_request"),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "usage"),
    ("vllm.v1.engine.core", "EngineCore", "__init__"),
    ("vllm.v1.engine.core_client", "AsyncMPClient", "call_utility_async"),
    ("vllm.v1.engine.async_llm", "AsyncLLM", "from_vllm_config"),
    ("vllm.v1.engine.async_llm", "AsyncLLM", "_run_output_handler"),
    ("vllm.v1.engine.output_processor", "OutputProcessor", "propagate_error"),
    ("vllm.v1.engine.output_processor", "OutputProcessor", "add_request"),
    ("vllm.v1.engine.detokenizer", "IncrementalDetokenizer", "from_new_request"),
    ("vllm.v1.engine.detokenizer", "BaseIncrementalDetokenizer", "get_next_output_text"),
    ("vllm.sampling_params", "SamplingParams", "update_from_generation_config"),
    ("vllm.v1.metrics.loggers", "StatLoggerBase", "record"),
)
_PARSING = (
    ("vllm.parser.parser_manager", "ParserManager", "get_parser"),
    ("vllm.parser.abstract_parser", "Parser", "adjust_request"),
    ("vllm.parser.abstract_parser", "Parser", "parse_delta"),
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest", "model_fields"),
)
_SCHEDULER_ATTRIBUTES = (
    "running",
    "max_num_running_reqs",
    "max_num_active_reqs",
    "max_num_scheduled_tokens",
    "kv_cache_manager",
)
_SUPPORTED = "0.32 and 0.33"


class IncompatibleVllmError(Exception):
    """This vLLM lacks a name that the engine needs; the text gives its version and the name."""


def vllm_version() -> str:
    """Version of the vLLM that is installed, whatever its distribution is called."""
    import vllm

    return str(vllm.__version__)


def _fail(missing: str) -> None:
    raise IncompatibleVllmError(
        f"vLLM {vllm_version()} has no {missing}; this engine works with vLLM {_SUPPORTED}"
    )


def check_vllm() -> None:
    """Checks classes and methods. Raises IncompatibleVllmError."""
    _check(_NAMES)


def check_parsing() -> None:
    """Checks what parsers of tool calls are composed with. Raises IncompatibleVllmError."""
    _check(_PARSING)


def _check(names: Iterable[tuple[str, str, str]]) -> None:
    for module_name, class_name, attribute in names:
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError):
            _fail(f"{module_name}.{class_name}")
        if not hasattr(found, attribute):
            _fail(f"{module_name}.{class_name}.{attribute}")


def check_scheduler(scheduler: Any) -> None:
    """Checks a scheduler inside the engine core. Raises IncompatibleVllmError."""
    for attribute in _SCHEDULER_ATTRIBUTES:
        if not hasattr(scheduler, attribute):
            _fail(f"Scheduler.{attribute}")


def check_client(llm: Any) -> None:
    """Checks an AsyncLLM that has started. Raises IncompatibleVllmError."""
    if not hasattr(llm.output_processor, "external_req_ids"):
        _fail("OutputProcessor.external_req_ids")
    if not hasattr(llm.input_processor, "generation_config_fields"):
        _fail("InputProcessor.generation_config_fields")
    if not hasattr(getattr(llm.engine_core.resources, "engine_manager", None), "processes"):
        _fail("CoreEngineProcManager.processes")
