"""vLLM's schedulers made tunable while they run.

vLLM imports these classes inside its engine core (by `scheduler_cls`). Importing this module adds three
utility methods to the core, which the worker calls by `engine_core.call_utility_async`; they run between
two steps. Nothing here is part of vLLM's public API, so the names in use are checked when the core starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from services.worker.engines.vllm.compat import check_scheduler


class _Tunable:
    """What both schedulers gain. `running` and the limits belong to vLLM's Scheduler."""

    running: list[Any]
    max_num_running_reqs: int
    max_num_active_reqs: int
    max_num_scheduled_tokens: int
    kv_cache_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_scheduler(self)
        # Steps are allocated for this many tokens; the live budget stays at or below it.
        self.chiron_budget_ceiling: int = self.max_num_scheduled_tokens

    def chiron_limits(self) -> list[int]:
        """[batch size, its ceiling, step-token budget, its ceiling]."""
        return [
            self.max_num_active_reqs,
            self.max_num_running_reqs,
            self.max_num_scheduled_tokens,
            self.chiron_budget_ceiling,
        ]

    def chiron_set_limits(self, batch_size: int, step_token_budget: int) -> list[int]:
        """Sets what is not 0; vLLM reads both at every step. Returns `chiron_limits`.

        `max_num_running_reqs` stays: vLLM asserts that the running count never exceeds it.
        """
        if batch_size:
            self.max_num_active_reqs = min(batch_size, self.max_num_running_reqs)
        if step_token_budget:
            self.max_num_scheduled_tokens = min(step_token_budget, self.chiron_budget_ceiling)
        return self.chiron_limits()

    def chiron_preempt(self, request_ids: Sequence[str]) -> tuple[list[str], int, int, float]:
        """Moves running requests back to the waiting queue.

        Returns those that were running, and the gauges of vLLM's own statistics as they are now: requests
        that run, requests that wait, and the share of the KV cache in use.

        Tokens of a step in flight are still delivered: vLLM resumes a request only once they are in.
        """
        wanted = set(request_ids)
        victims = [request for request in self.running if request.request_id in wanted]
        # A pending hand-over of KV blocks to a connector would not survive the blocks being freed.
        options = {"drop_stale_output": True} if getattr(self, "requires_kv_delivery", False) else {}
        now = time.monotonic()
        for request in victims:
            self.running.remove(request)
            self._preempt_request(request, now, **options)  # type: ignore[attr-defined]
        running, waiting = self.get_request_counts()  # type: ignore[attr-defined]
        return [request.request_id for request in victims], running, waiting, self.kv_cache_manager.usage


class TunableScheduler(_Tunable, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, tunable."""


class TunableAsyncScheduler(_Tunable, AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler that runs one step ahead, tunable."""


def _limits(core: Any) -> list[int]:
    limits: list[int] = core.scheduler.chiron_limits()
    return limits


def _set_limits(core: Any, batch_size: int, step_token_budget: int) -> list[int]:
    limits: list[int] = core.scheduler.chiron_set_limits(batch_size, step_token_budget)
    return limits


def _preempt(core: Any, request_ids: list[str]) -> tuple[list[str], int, int, float]:
    preempted: tuple[list[str], int, int, float] = core.scheduler.chiron_preempt(request_ids)
    return preempted


EngineCore.chiron_limits = _limits
EngineCore.chiron_set_limits = _set_limits
EngineCore.chiron_preempt = _preempt
