"""Puts a stream together, over all attempts, and checks that no token is repeated or skipped. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiron.client.errors import ProtocolError
from chiron.client.output import (
    Choice,
    Chunk,
    FinishReason,
    Parsed,
    ParsedPiece,
    Timing,
    TokenAlternative,
    TokenLogprobs,
    ToolCall,
    ToolCallPiece,
    Usage,
)
from chiron.client.parsed import ParsedParts
from chiron.client.stopwatch import Stopwatch
from chiron.v1 import inference_pb2 as pb

FINISH_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ABORT: FinishReason.ABORT,
}


@dataclass(slots=True)
class _Partial:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_match: str = ""
    parsed: ParsedParts = field(default_factory=ParsedParts)


class Assembly:
    """What the request's stream has delivered so far."""

    def __init__(self, request_id: str, choices: int, attempts: int, started_s: float) -> None:
        """Starts empty.

        Args:
            request_id: goes into every chunk.
            choices: how many choices the stream must bring to an end.
            attempts: how many attempts there have been, this one included.
            started_s: when the request's first attempt began.
        """
        self._request_id = request_id
        self.attempts = attempts
        self.instance_id = ""
        """Where this attempt's tokens come from; "": through a router."""
        """Goes into every chunk; whoever makes another attempt for the same stream counts it here."""
        self.preemptions = 0
        """How often workers preempted the request that have handed it back."""
        self._origin: pb.StreamOrigin | None = None
        self._choices = [_Partial() for _ in range(choices)]
        self._stopwatch = Stopwatch(started_s)
        self.usage: Usage | None = None
        self.timing: Timing | None = None

    @property
    def begun(self) -> bool:
        """True once anything was delivered."""
        return any(each.token_ids or each.texts for each in self._choices)

    @property
    def delivered_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(each.token_ids) for each in self._choices)

    @property
    def spec_version(self) -> int:
        """Of the worker that began the stream; 0: it did not say."""
        return self._origin.spec_version if self._origin is not None else 0

    def resume_state(self, spec_version: int) -> pb.ResumeState:
        """What another attempt must be told; there must be one choice, with a token.

        Args:
            spec_version: of the model's spec that the stream began on, as its router said; 0: as its worker.
        """
        (choice,) = self._choices
        # An end without usage is told again.
        choice.finish_reason = None
        state = pb.ResumeState(
            delivered_token_ids=choice.token_ids,
            delivered_text_length=sum(map(len, choice.texts)),
            origin=self._origin,
        )
        if self.preemptions:
            state.origin.preemptions = self.preemptions
        if spec_version:
            state.origin.spec_version = spec_version
        return state

    def add(self, delta: pb.OutputDelta, now_s: float) -> Chunk:
        """Takes one delta in and returns it as a chunk. Raises ProtocolError when it does not follow on."""
        if self.usage is not None:
            raise _broken("a delta follows the last one")
        if delta.choice >= len(self._choices):
            raise _broken(f"choice {delta.choice} of {len(self._choices)}")
        choice = self._choices[delta.choice]
        if choice.finish_reason is not None:
            raise _broken(f"choice {delta.choice} goes on after its end")
        if delta.first_token_index != len(choice.token_ids):
            what = "repeated" if delta.first_token_index < len(choice.token_ids) else "skipped"
            raise _broken(
                f"token {what}: choice {delta.choice} has {len(choice.token_ids)} tokens, "
                f"the next delta starts at {delta.first_token_index}"
            )
        if delta.HasField("origin"):
            self._origin = delta.origin
        token_ids = tuple(delta.token_ids)
        logprobs = tuple(token_logprobs(each) for each in delta.logprobs) if delta.logprobs else ()
        if token_ids:
            self._stopwatch.tokens(delta.choice, len(token_ids), now_s)
        choice.token_ids += token_ids
        choice.logprobs += logprobs
        if delta.text:
            choice.texts.append(delta.text)
        if delta.HasField("parsed"):
            try:
                choice.parsed.add(delta.parsed)
            except ValueError as error:
                raise _broken(str(error)) from error
        if delta.finish_reason:
            choice.finish_reason = FINISH_REASONS.get(delta.finish_reason)
            if choice.finish_reason is None:
                raise _broken(f"unknown finish reason {delta.finish_reason}")
            choice.stop_match = delta.stop_match
        if delta.HasField("usage"):
            self.usage = Usage(
                delta.usage.prompt_tokens, delta.usage.cached_prompt_tokens, delta.usage.completion_tokens
            )
        if delta.HasField("timing"):
            self.timing = self._timing(delta.timing, now_s)
        return Chunk(
            text=delta.text,
            token_ids=token_ids,
            choice=delta.choice,
            first_token_index=delta.first_token_index,
            text_ends=tuple(delta.text_ends),
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            stop_match=choice.stop_match,
            usage=self.usage,
            timing=self.timing,
            request_id=self._request_id,
            attempts=self.attempts,
            parsed=_parsed_piece(delta.parsed) if delta.HasField("parsed") else None,
            instance_id=self.instance_id,
        )

    def check_complete(self) -> tuple[Usage, Timing]:
        """Usage and timing of the finished stream. Raises ProtocolError when a part of it is missing."""
        for index, choice in enumerate(self._choices):
            if choice.finish_reason is None:
                raise _broken(f"the stream ended, but choice {index} did not")
        if self.usage is None or self.timing is None:
            raise _broken("the stream ended without usage and timing")
        return self.usage, self.timing

    def choices(self) -> tuple[Choice, ...]:
        """Every choice as far as it came."""
        return tuple(
            Choice(
                index=index,
                text="".join(each.texts),
                token_ids=tuple(each.token_ids),
                logprobs=tuple(each.logprobs),
                finish_reason=each.finish_reason,
                stop_match=each.stop_match,
                parsed=parsed_output(each.parsed.whole("".join(each.texts))) if each.parsed.any else None,
            )
            for index, each in enumerate(self._choices)
        )

    def _timing(self, timing: pb.Timing, now_s: float) -> Timing:
        watch = self._stopwatch
        return Timing(
            ttft_ms=timing.ttft_ms,
            queue_ms=timing.queue_ms,
            itl_mean_ms=timing.itl_mean_ms,
            itl_max_ms=timing.itl_max_ms,
            total_ms=timing.total_ms,
            preemptions=timing.preemptions,
            instance_id=timing.instance_id,
            client_ttft_ms=watch.ttft_ms,
            client_itl_mean_ms=watch.itl_mean_ms,
            client_itl_max_ms=watch.itl_max_ms,
            client_total_ms=watch.since_start_ms(now_s),
        )


def _broken(what: str) -> ProtocolError:
    return ProtocolError(what, reason="PROTOCOL_ERROR")


def token_logprobs(logprobs: pb.TokenLogprobs) -> TokenLogprobs:
    """The probabilities of one token."""
    return TokenLogprobs(
        logprob=logprobs.logprob,
        rank=logprobs.rank,
        alternatives=tuple(
            TokenAlternative(each.token_id, each.logprob, each.text) for each in logprobs.alternatives
        ),
    )


def _parsed_piece(delta: pb.ParsedDelta) -> ParsedPiece:
    return ParsedPiece(
        content=delta.content,
        tool_calls=tuple(
            ToolCallPiece(piece.index, piece.id, piece.name, piece.arguments) for piece in delta.tool_calls
        ),
        reasoning=delta.reasoning,
        error=delta.error,
    )


def parsed_output(parsed: pb.ParsedOutput) -> Parsed:
    """What a choice says and calls."""
    return Parsed(
        content=parsed.content,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in parsed.tool_calls),
        reasoning=parsed.reasoning,
        error=parsed.error,
    )
