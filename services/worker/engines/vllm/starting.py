"""Starts vLLM. Everything here blocks and runs in a thread: importing vLLM alone takes seconds."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from services.worker.engines.base import EngineConfig, EngineLoadError
from services.worker.engines.vllm.arguments import engine_arguments
from services.worker.engines.vllm.cache import CacheWatch
from services.worker.engines.vllm.compat import IncompatibleVllmError, check_client, check_vllm
from services.worker.engines.vllm.failure_log import FailureLog
from services.worker.engines.vllm.weights import find_weights

_SCHEDULERS = "services.worker.engines.vllm.scheduler"
_ENVIRONMENT = {
    # A forked engine would inherit the worker's gRPC threads and sockets.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


@dataclass(slots=True)
class StartedVllm:
    """What `start_vllm` made."""

    llm: Any
    """An AsyncLLM that has loaded its model. This is the only lasting reference: exceptions that vLLM keeps
    from its imports keep our stack frames too, and its destructor must run before the interpreter ends."""
    statistics: Any
    """The statistics that it feeds."""
    failure: FailureLog
    """Why one of its processes ended."""
    cache: CacheWatch | None
    """What leaves its prefix cache; None: it caches no prefixes, or its KV events go where the spec says."""


def start_vllm(config: EngineConfig) -> StartedVllm:
    """Loads the model. Raises EngineLoadError with the cause, also when that lies in an engine process."""
    config = dataclasses.replace(config, weights=find_weights(config.weights))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise EngineLoadError(f"vLLM cannot be imported: {error}") from error
    failure = FailureLog(os.environ)
    try:
        check_vllm()
        arguments = engine_arguments(config, os.environ)
        cache = _watch_cache(arguments)
        try:
            started = _create(arguments, config, failure, cache)
            check_client(started.llm)
        except BaseException:
            if cache is not None:
                cache.discard()
            raise
    except EngineLoadError:
        failure.close()
        raise
    except IncompatibleVllmError as error:
        failure.close()
        raise EngineLoadError(str(error)) from error
    except Exception as error:
        cause = failure.cause() or _one_line(error)
        failure.close()
        raise EngineLoadError(cause) from error
    finally:
        failure.inherited()
    return started


def _watch_cache(arguments: dict[str, Any]) -> CacheWatch | None:
    """Has the engine core publish its KV events, unless the spec has it publish them elsewhere."""
    from vllm.config import KVEventsConfig

    if not arguments["enable_prefix_caching"] or "kv_events_config" in arguments:
        return None
    cache = CacheWatch()
    arguments["kv_events_config"] = KVEventsConfig(
        enable_kv_cache_events=True, publisher="zmq", endpoint=cache.endpoint
    )
    return cache


def _create(
    arguments: dict[str, Any], config: EngineConfig, failure: FailureLog, cache: CacheWatch | None
) -> StartedVllm:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from services.worker.engines.vllm.statistics import Statistics

    check_parsers(config)
    vllm_config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    scheduler = vllm_config.scheduler_config
    # Whether the scheduler runs ahead is known only now; vLLM imports the class in the engine core.
    scheduler.scheduler_cls = (
        f"{_SCHEDULERS}.{'TunableAsyncScheduler' if scheduler.async_scheduling else 'TunableScheduler'}"
    )
    statistics = Statistics()
    return StartedVllm(
        llm=AsyncLLM.from_vllm_config(
            vllm_config,
            stat_loggers=[lambda *_: statistics],
            disable_log_stats=arguments["disable_log_stats"],
        ),
        statistics=statistics,
        failure=failure,
        cache=cache,
    )


def check_parsers(config: EngineConfig) -> None:
    """Refuses parser names that vLLM does not know. Raises EngineLoadError naming those it does."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for field, name, manager in (
        ("tool_parser", config.tool_parser, ToolParserManager),
        ("reasoning_parser", config.reasoning_parser, ReasoningParserManager),
    ):
        known = sorted(manager.list_registered())
        if name and name not in known:
            raise EngineLoadError(f"{field}: vLLM has no {name!r}; it has {', '.join(known)}")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
