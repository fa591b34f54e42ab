"""From vLLM's outputs to the worker's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineError, EngineOutput, InvalidRequestError
from services.worker.engines.vllm.offsets import INCOMPLETE, TextOffsets

_FINISH = {
    "stop": pb.FINISH_REASON_STOP,
    "repetition": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_ABORT,
}

Decode = Callable[..., str]
"""The tokenizer's `decode(token_ids, skip_special_tokens=...)`."""


class OutputReader:
    """Converts the outputs of one request, in order."""

    def __init__(self, decode: Decode, prompt_token_ids: Sequence[int], sampling: pb.SamplingParams) -> None:
        self._decode = decode
        self._sampling = sampling
        self._alternatives = sampling.logprobs if sampling.HasField("logprobs") else None
        longest_stop = max((len(stop) for stop in sampling.stop), default=1)
        held_back = 0 if sampling.include_stop else longest_stop - 1
        self._held_back = held_back
        self._offsets = [
            TextOffsets(self._decode_text, prompt_token_ids, held_back) for _ in range(sampling.n or 1)
        ]
        self.surplus = self._prompt_surplus(prompt_token_ids)
        """Characters of the prompt that vLLM puts before each choice's output."""
        self._surplus = [self.surplus] * (sampling.n or 1)
        self._cached = 0
        self._time = 0.0
        self._queue_s = 0.0
        self._preemptions = 0

    def resume(self, before: Sequence[int], decoded: int, released: int) -> None:
        """The only choice goes on where another engine left it.

        Args:
            before: prompt and delivered tokens.
            decoded: code points of the text that the delivered tokens decode to.
            released: code points of it that have been delivered.
        """
        self._offsets = [TextOffsets(self._decode_text, before, self._held_back, decoded, released)]
        self._surplus = [0]

    def delivered(self, token_ids: Sequence[int], text: str) -> ChoiceDelta:
        """Tokens and text that the only choice has delivered, as one delta."""
        return ChoiceDelta(0, token_ids, text, self._offsets[0].ends(token_ids, text))

    def _decode_text(self, token_ids: Sequence[int]) -> str:
        return self._decode(token_ids, skip_special_tokens=not self._sampling.keep_special_tokens)

    def _prompt_surplus(self, prompt_token_ids: Sequence[int]) -> int:
        """Characters of the prompt that vLLM will wrongly put before the output.

        Its detokeniser does so when the prompt ends within a character, as the tokens of a resumed request
        may. It then also looks for stop strings in the prompt: InvalidRequestError if it would find one.
        """
        if not self._decode_text(prompt_token_ids[-4:]).endswith(INCOMPLETE):
            return 0
        text = self._decode_text(prompt_token_ids).rstrip(INCOMPLETE)
        for stop in self._sampling.stop:
            if stop in text:
                raise InvalidRequestError(
                    "sampling.stop", f"{stop!r} is in the prompt, and the prompt ends within a character"
                )
        return len(text)

    def convert(self, output: Any) -> EngineOutput:
        """The worker's form of a RequestOutput. Raises EngineError when vLLM gave the request up."""
        deltas = [self._delta(completion) for completion in output.outputs]
        if output.num_cached_tokens is not None:
            self._cached = max(self._cached, output.num_cached_tokens)
        metrics = output.metrics
        if metrics is not None and deltas:
            # With n > 1 they are those of one choice; the most preempted one that shows counts.
            self._preemptions = max(self._preemptions, metrics.num_preemptions)
            self._time = max(self._time, metrics.last_token_ts)
            self._queue_s = max(0.0, metrics.scheduled_ts - metrics.queued_ts)
        return EngineOutput(
            deltas=deltas,
            time=self._time or time.monotonic(),
            cached_prompt_tokens=self._cached,
            preemptions=self._preemptions,
            queue_s=self._queue_s,
        )

    def _delta(self, completion: Any) -> ChoiceDelta:
        offsets = self._offsets[completion.index]
        text = completion.text
        if self._surplus[completion.index]:
            removed = min(self._surplus[completion.index], len(text))
            text = text[removed:]
            self._surplus[completion.index] -= removed
        token_ids = list(completion.token_ids)
        if completion.finish_reason == "error":
            if offsets.started or not self._sampling.HasField("structured_output"):
                raise EngineError("the engine gave the request up after an internal error")
            kind = self._sampling.structured_output.WhichOneof("constraint")
            raise InvalidRequestError(f"sampling.structured_output.{kind}", "it cannot be compiled")
        return ChoiceDelta(
            choice=completion.index,
            token_ids=token_ids,
            text=text,
            text_ends=offsets.ends(token_ids, text),
            logprobs=self._logprobs(token_ids, completion.logprobs),
            finish_reason=_FINISH[completion.finish_reason]
            if completion.finish_reason
            else pb.FINISH_REASON_UNSPECIFIED,
            stop_match=self._stop_match(completion.stop_reason),
        )

    def _stop_match(self, reason: int | str | None) -> str:
        if isinstance(reason, int):
            return self._decode([reason], skip_special_tokens=False)
        return reason or ""

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[Mapping[int, Any]] | None
    ) -> list[pb.TokenLogprobs]:
        if self._alternatives is None or not positions:
            return []
        return [
            self._token_logprobs(token_id, position)
            for token_id, position in zip(token_ids, positions, strict=False)
        ]

    def _token_logprobs(self, token_id: int, position: Mapping[int, Any]) -> pb.TokenLogprobs:
        """vLLM gives the sampled token and the most likely ones; only the latter are alternatives."""
        sampled = position[token_id]
        ranked = sorted(position.items(), key=lambda item: item[1].rank)
        return pb.TokenLogprobs(
            logprob=sampled.logprob,
            rank=sampled.rank,
            alternatives=[
                pb.TokenAlternative(token_id=each, logprob=found.logprob, text=found.decoded_token or "")
                for each, found in ranked[: self._alternatives]
            ],
        )
