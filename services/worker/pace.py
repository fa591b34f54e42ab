"""The times of one request, taken at the engine before anything is merged or sent. Pure."""

from __future__ import annotations

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineOutput
from services.worker.meter import Meter


class Pace:
    """Follows a request's outputs and tells its timing and usage."""

    def __init__(
        self,
        meter: Meter,
        arrival: float,
        elapsed_ms: float,
        prompt_tokens: int,
        resume: pb.ResumeState | None = None,
    ) -> None:
        """Starts to follow.

        Args:
            meter: of the whole worker.
            arrival: the monotonic second at which the worker got the request.
            elapsed_ms: time spent before.
            prompt_tokens: delivered tokens are not among them.
            resume: what an earlier attempt has delivered; None: nothing.
        """
        self._meter = meter
        self._arrival = arrival
        self._elapsed_ms = elapsed_ms
        self._prompt_tokens = prompt_tokens
        self._last: dict[int, float] = {}
        self._first: float | None = None
        self._gap_sum = self._gap_max = 0.0
        self._gaps = 0
        self._origin = resume.origin if resume is not None and resume.HasField("origin") else None
        self.tokens = len(resume.delivered_token_ids) if resume is not None else 0
        """Output tokens so far, those of earlier attempts included."""
        self.slot_tokens = self.tokens
        """Those of them that it had when it last got a slot."""
        self.cached_tokens = 0
        self._before = self._origin.preemptions if self._origin is not None else 0
        self.preemptions = self._before
        """How often it was preempted, over all attempts."""
        self.finish_reasons: list[str] = []
        """`stop`, `length` or `abort` for each choice that has ended."""
        self._queue_s = 0.0
        self._end = arrival

    def add(self, output: EngineOutput) -> None:
        """Takes one output; tokens that one choice gained together share the time since its last."""
        now = output.time
        self._end = now
        self.cached_tokens = output.cached_prompt_tokens
        if self._before + output.preemptions != self.preemptions:
            self.preemptions = self._before + output.preemptions
            self.slot_tokens = self.tokens
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
    def resumed(self) -> bool:
        """Whether an earlier attempt has delivered something."""
        return self._origin is not None

    @property
    def computed_tokens(self) -> int:
        """Tokens in its KV cache while it runs."""
        return self._prompt_tokens + self.tokens

    @property
    def ttft_ms(self) -> float:
        """From the first door to the first token of the first attempt, in milliseconds; 0 before it."""
        if self._origin is not None:
            return self._origin.ttft_ms
        if self._first is None:
            return 0.0
        return self._elapsed_ms + self.start_ms

    @property
    def start_ms(self) -> float:
        """From the request's arrival at the worker to its first token there, in milliseconds; 0 before it."""
        return 0.0 if self._first is None else 1e3 * max(0.0, self._first - self._arrival)

    @property
    def itl_mean_ms(self) -> float:
        """Mean time between tokens, in milliseconds; 0 with one token."""
        return 1e3 * self._gap_sum / self._gaps if self._gaps else 0.0

    @property
    def whole_itl_ms(self) -> float:
        """As `itl_mean_ms`; of a resumed stream over all attempts, with the gap between them."""
        if self._origin is None or self.tokens < 2:
            return self.itl_mean_ms
        return max(0.0, self.since_door_ms - self._origin.ttft_ms) / (self.tokens - 1)

    @property
    def since_door_ms(self) -> float:
        """From the request's arrival at the first door to its last output, in milliseconds."""
        return self._elapsed_ms + self.total_ms

    @property
    def queue_ms(self) -> float:
        """Time in the engine's queue before the first step that ran the request, in milliseconds."""
        return 1e3 * self._queue_s

    @property
    def prefill_ms(self) -> float:
        """From the end of the wait in the engine to the first token here, in milliseconds; 0 before it."""
        if self._first is None:
            return 0.0
        return 1e3 * max(0.0, self._first - self._arrival - self._queue_s)

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
        """The request's tokens so far, those of earlier attempts included."""
        cached = self.cached_tokens if self._origin is None else self._origin.cached_prompt_tokens
        return pb.Usage(
            prompt_tokens=self._prompt_tokens,
            # An engine finds delivered tokens in its cache too.
            cached_prompt_tokens=min(cached, self._prompt_tokens),
            completion_tokens=self.tokens,
        )

    def origin(self, spec_version: int) -> pb.StreamOrigin:
        """What a later attempt must be told, once the first output is there."""
        return pb.StreamOrigin(
            spec_version=spec_version, cached_prompt_tokens=self.cached_tokens, ttft_ms=self.ttft_ms
        )
