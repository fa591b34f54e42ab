"""Takes vLLM's detokeniser through tokens that another engine delivered, and hands it to the new request.

vLLM sees delivered tokens as part of the prompt. What its front end keeps of an output, the characters not
yet whole, the text in which it looks for stop strings, the count that min_tokens refers to, is made again
here from the tokens, and replaces that of the request as it is added. None of this is public API; `compat`
checks the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineRequest, InvalidRequestError

_LOGPROBS_CONTEXT = 4
"""Tokens before the present one from which vLLM completes the text of an alternative."""


def resume_obstacle(sampling: pb.SamplingParams) -> str:
    """What of a stream's past lies in the engine that is gone; empty: nothing."""
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    if sampling.n > 1:
        return "it has several choices"
    if sampling.HasField("structured_output"):
        return "it has a structured_output, whose grammar's state is gone"
    if sampling.HasField("seed") and not greedy:
        return "it has a seed, and the random numbers drawn so far are gone"
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            return f"it has a {name}, which does not count what the engine takes for its prompt"
    return ""


def remaining(sampling: pb.SamplingParams, delivered: int) -> pb.SamplingParams:
    """What is left to generate after so many tokens."""
    rest = pb.SamplingParams()
    rest.CopyFrom(sampling)
    rest.max_tokens = sampling.max_tokens - delivered
    rest.min_tokens = max(0, sampling.min_tokens - delivered)
    return rest


class Seam:
    """One request's past, gone through again."""

    def __init__(self, llm: Any, request: EngineRequest, params: Any, surplus: int) -> None:
        """Goes through the delivered tokens.

        Args:
            llm: the AsyncLLM.
            request: with delivered tokens.
            params: vLLM's SamplingParams of the whole request; they are changed as vLLM would.
            surplus: characters of the prompt that vLLM puts before the output.

        Raises:
            InvalidRequestError: no undisturbed request delivers these tokens and this much text.
        """
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        delivered = list(request.delivered_token_ids)
        processor = llm.input_processor
        params.update_from_generation_config(
            processor.generation_config_fields, processor.renderer.get_eos_token_id()
        )
        self._delivered = delivered
        self._eos = params.eos_token_id
        ends = {*params.stop_token_ids, *([] if self._eos is None else [self._eos])}
        self._ended = delivered[-1] in ends
        self._full = len(delivered) == request.sampling.max_tokens
        whole = SimpleNamespace(
            request_id=request.request_id,
            sampling_params=params,
            prompt_token_ids=list(request.prompt_token_ids),
            prompt_embeds=None,
        )
        self.detokenizer: Any = IncrementalDetokenizer.from_new_request(llm.output_processor.tokenizer, whole)
        self._stop = self.detokenizer.update(delivered, self._ended)
        early = next((index for index, token in enumerate(delivered[:-1]) if token in ends), None)
        kept = self.detokenizer.num_output_tokens() if early is None else early + 1
        kept = min(kept, request.sampling.max_tokens)
        if kept < len(delivered):
            raise InvalidRequestError("resume.delivered_token_ids", f"the output ends after {kept} of them")
        self.decoded = len(self.detokenizer.output_text) - surplus
        """Code points of all the output's text, what is held back included."""
        self._surplus = surplus
        self.released = request.delivered_text_length
        """Code points that have been delivered."""
        held = 0 if self.finished else self.detokenizer.stop_buffer_length
        if self.released > max(0, self.decoded - held):
            raise InvalidRequestError(
                "resume.delivered_text_length",
                f"is {self.released}, the tokens have released {max(0, self.decoded - held)}",
            )
        self.detokenizer._last_output_text_offset = self.released + surplus

    @property
    def delivered_text(self) -> str:
        """The text that has been delivered."""
        text: str = self.detokenizer.output_text[self._surplus : self._surplus + self.released]
        return text

    @property
    def finished(self) -> bool:
        """Whether the delivered tokens end the output."""
        return bool(self._stop) or self._ended or self._full

    def last_delta(self, decode: Any) -> ChoiceDelta:
        """The end of an output that has no further token; `decode` gives the text of token ids."""
        stopped = bool(self._stop) or self._ended
        match = self._stop or ""
        if not match and self._ended and self._delivered[-1] != self._eos:
            match = decode(self._delivered[-1:], skip_special_tokens=False)
        return ChoiceDelta(
            choice=0,
            token_ids=[],
            text=self.detokenizer.output_text[self.released + self._surplus :],
            text_ends=[],
            finish_reason=pb.FINISH_REASON_STOP if stopped else pb.FINISH_REASON_LENGTH,
            stop_match=match,
        )

    def take_over(self, state: Any) -> None:
        """Gives a request that vLLM has just added its past."""
        state.detokenizer = self.detokenizer
        if state.logprobs_processor.logprobs is not None:
            # Never handed out: vLLM takes from the end as many as it has new tokens.
            state.logprobs_processor.logprobs += [
                {token: None} for token in self._delivered[-_LOGPROBS_CONTEXT:]
            ]


class Seams:
    """The seams of requests that are about to be added, by request id."""

    def __init__(self, output_processor: Any) -> None:
        """Steps in where the processor adds requests: from there to the first output nothing waits."""
        self._waiting: dict[str, Seam] = {}
        self._processor = output_processor
        self._add = output_processor.add_request
        output_processor.add_request = self._add_request

    def expect(self, request_id: str, seam: Seam) -> None:
        """The next request of this id continues the seam."""
        self._waiting[request_id] = seam

    def forget(self, request_id: str) -> None:
        """The request will not come, or has come."""
        self._waiting.pop(request_id, None)

    def _add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._add(request, *args, **kwargs)
        seam = self._waiting.pop(request.external_req_id, None)
        if seam is not None:
            seam.take_over(self._processor.request_states[request.request_id])


def with_delivered(request: EngineRequest) -> Sequence[int]:
    """What the engine computes before the first new token."""
    return [*request.prompt_token_ids, *request.delivered_token_ids]
