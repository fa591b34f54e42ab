"""Collects vLLM's statistics by its stat-logger hook."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class Statistics(StatLoggerBase):  # type: ignore[misc]
    """Counters since the start and the newest gauges. vLLM calls `record` once per engine output."""

    def __init__(self) -> None:
        self.steps = 0
        self.output_tokens = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self.preemptions = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Takes up what one engine output says; either part may be missing."""
        if scheduler_stats is not None:
            self.steps += 1
            self.running = scheduler_stats.num_running_reqs
            # Requests whose grammar is compiling, for one, are counted apart.
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self.kv_usage = scheduler_stats.kv_cache_usage
            drafts = scheduler_stats.spec_decoding_stats
            if drafts is not None:
                self.draft_tokens += drafts.num_draft_tokens
                self.accepted_tokens += drafts.num_accepted_tokens
        if iteration_stats is not None:
            prompts = iteration_stats.prompt_token_stats
            self.output_tokens += iteration_stats.num_generation_tokens
            self.prompt_tokens += prompts.total
            self.cached_prompt_tokens += prompts.cached_tokens
            self.preemptions += iteration_stats.num_preempted_reqs

    def set_gauges(self, running: int, waiting: int, kv_usage: float) -> None:
        """Takes gauges that the engine core told beside its outputs; they are newer than the last record."""
        self.running, self.waiting, self.kv_usage = running, waiting, kv_usage

    def log_engine_initialized(self) -> None:
        """Nothing to announce."""
