"""The times of one request, taken at the engine before anything is merged or sent. Pure."""

from __future__ import annotations

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineOutput
from services.worker.meter import Meter


class Pace:
    """Follows a request's outputs and tells its timing and usage."""

    def __init__(self, meter: Meter, arrival: float, elapsed_ms: float, prompt_tokens: int) -> None:
        """`arrival` is the monotonic second at which the worker got it; `elapsed_ms` was spent before."""
        self._meter = meter
        self._arrival = arrival
        self._elapsed_ms = elapsed_ms
        self._prompt_tokens = prompt_tokens
        self._last: dict[int, float] = {}
        self._first: float | None = None
        self._gap_sum = self._gap_max = 0.0
        self._gaps = 0
        self.tokens = 0
        self.cached_tokens = self.preemptions = 0
        self.finish_reasons: list[str] = []
        """`stop`, `length` or `abort` for each choice that has ended."""
        self._queue_s = 0.0
        self._end = arrival

    def add(self, output: EngineOutput) -> None:
        """Takes one output; tokens that one choice gained together share the time since its last."""
        now = output.time
        self._end = now
        self.cached_tokens, self.preemptions = output.cached_prompt_tokens, output.preemptions
        self._queue_s = output.queue_s
        for delta in output.deltas:
            if delta.finish_reason:
                name = pb.FinishReason.Name(delta.finish_reason)
                self.finish_reasons.append(name.removeprefix("FINISH_REASON_").lower())
            count = len(delta.token_ids)
            if not count:
                continue
            if self._first is None:
                self._first = now
            self.tokens += count
            last = self._last.get(delta.choice)
            self._last[delta.choice] = now
            if last is not None:
                gap = max(0.0, now - last) / count
                self._gap_sum += gap * count
                self._gaps += count
                self._gap_max = max(self._gap_max, gap)
                self._meter.tokens(gap, count, now)

    @property
    def ttft_ms(self) -> float:
        """From the first door to the first token, in milliseconds; 0 before it."""
        if self._first is None:
            return 0.0
        return self._elapsed_ms + 1e3 * max(0.0, self._first - self._arrival)

    @property
    def itl_mean_ms(self) -> float:
        """Mean time between tokens, in milliseconds; 0 with one token."""
        return 1e3 * self._gap_sum / self._gaps if self._gaps else 0.0

    @property
    def queue_ms(self) -> float:
        """Time in the engine's queue before the first step that ran the request, in milliseconds."""
        return 1e3 * self._queue_s

    @property
    def total_ms(self) -> float:
        """From the request's arrival at the worker to its last output, in milliseconds."""
        return 1e3 * max(0.0, self._end - self._arrival)

    def timing(self, instance_id: str) -> pb.Timing:
        """The request's times so far."""
        return pb.Timing(
            ttft_ms=self.ttft_ms,
            queue_ms=self.queue_ms,
            itl_mean_ms=self.itl_mean_ms,
            itl_max_ms=1e3 * self._gap_max,
            total_ms=self.total_ms,
            preemptions=self.preemptions,
            instance_id=instance_id,
        )

    def usage(self) -> pb.Usage:
        """The request's tokens so far."""
        return pb.Usage(
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self.cached_tokens,
            completion_tokens=self.tokens,
        )
