"""What a request whose answer is not streamed has been answered so far: its result once it is whole, and for
an item of a batch a checkpoint until then. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from chiron.client.parsed import ParsedParts
from chiron.internal.v1 import batch_pb2 as internal_pb2
from chiron.v1 import batch_pb2
from chiron.v1 import inference_pb2 as pb

_UNREAD_BYTES = 16 * 1024
"""Messages pile up unread to this size: two of them merge by joining their bytes."""


@dataclass(slots=True)
class _Choice:
    tokens: array[int] = field(default_factory=lambda: array("I"))
    text: list[str] = field(default_factory=list)
    text_length: int = 0
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    text_ends: array[int] = field(default_factory=lambda: array("I"))
    """Of the tokens that have log probabilities."""
    finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
    stop_match: str = ""
    parsed: ParsedParts = field(default_factory=ParsedParts)


class Answer:
    """The sink of one request's stream. Taking a message costs an append; it is read when it must be."""

    def __init__(self, choices: int, kept: internal_pb2.ItemCheckpoint | None = None) -> None:
        """An answer that has nothing yet.

        Args:
            choices: that the request asks for.
            kept: what an earlier holder of the item left; only of one choice.
        """
        self._unread = bytearray()
        self._choices = [_Choice() for _ in range(choices)]
        self._origin = pb.StreamOrigin()
        self._last: pb.OutputDelta | None = None
        self.begun_with = 0
        """Output tokens that it had at first."""
        if kept is not None:
            one = self._choices[0]
            one.tokens.extend(kept.resume.delivered_token_ids)
            one.text.append(kept.text)
            one.text_length = kept.resume.delivered_text_length
            one.logprobs.extend(kept.logprobs)
            one.text_ends.extend(kept.text_ends)
            if kept.HasField("parsed"):
                one.parsed = ParsedParts(kept.parsed)
            self._origin = kept.resume.origin
            self.begun_with = len(one.tokens)

    async def write(self, message: bytes, /) -> None:
        """Takes a message of the stream. Raises DecodeError for one that cannot be read."""
        self._unread += message
        if len(self._unread) > _UNREAD_BYTES:
            self._read()

    def time_remaining(self) -> float | None:
        """No call waits for it."""
        return None

    @property
    def tokens(self) -> int:
        """Output tokens so far, over all choices."""
        self._read()
        return sum(len(choice.tokens) for choice in self._choices)

    @property
    def complete(self) -> bool:
        """Whether its last message has come. Raises DecodeError."""
        self._read()
        return self._last is not None

    @property
    def given_up(self) -> bool:
        """Whether the engine ended a choice before its time."""
        self._read()
        return any(choice.finish_reason == pb.FINISH_REASON_ABORT for choice in self._choices)

    @property
    def usage(self) -> pb.Usage:
        """Of a complete one. Raises DecodeError."""
        self._read()
        return self._last.usage if self._last is not None else pb.Usage()

    def checkpoint(self) -> bytes:
        """What another holder of the item goes on from; empty: it begins anew. Raises DecodeError."""
        self._read()
        if len(self._choices) != 1 or not self._choices[0].tokens:
            return b""
        one = self._choices[0]
        return internal_pb2.ItemCheckpoint(
            resume=pb.ResumeState(
                delivered_token_ids=one.tokens,
                delivered_text_length=one.text_length,
                origin=self._origin,
            ),
            text="".join(one.text),
            logprobs=one.logprobs,
            text_ends=one.text_ends,
            parsed=one.parsed.so_far() if one.parsed.any else None,
        ).SerializeToString()

    def output(self, model: str) -> batch_pb2.ItemOutput:
        """The result of a complete one. Raises DecodeError."""
        self._read()
        last = self._last or pb.OutputDelta()
        return batch_pb2.ItemOutput(
            choices=[
                batch_pb2.ItemChoice(
                    text="".join(choice.text),
                    token_ids=choice.tokens,
                    finish_reason=choice.finish_reason,
                    stop_match=choice.stop_match,
                    logprobs=choice.logprobs,
                    text_ends=choice.text_ends,
                    parsed=choice.parsed.whole("".join(choice.text)) if choice.parsed.any else None,
                )
                for choice in self._choices
            ],
            usage=last.usage,
            timing=last.timing,
            model=model,
            spec_version=self._origin.spec_version,
        )

    def _read(self) -> None:
        if not self._unread:
            return
        unread = bytes(self._unread)
        self._unread.clear()
        for delta in pb.GenerateResponse.FromString(unread).deltas:
            if delta.choice >= len(self._choices):
                raise DecodeError(f"it has a choice {delta.choice}, of {len(self._choices)} asked for")
            choice = self._choices[delta.choice]
            choice.tokens.extend(delta.token_ids)
            if delta.text:
                choice.text.append(delta.text)
                choice.text_length += len(delta.text)
            if delta.logprobs:
                choice.logprobs.extend(delta.logprobs)
                choice.text_ends.extend(delta.text_ends)
            if delta.HasField("parsed"):
                _add_parsed(choice.parsed, delta.parsed)
            if delta.finish_reason:
                choice.finish_reason, choice.stop_match = delta.finish_reason, delta.stop_match
            if delta.HasField("origin"):
                self._origin = delta.origin
            if delta.HasField("usage"):
                self._last = delta


def _add_parsed(parts: ParsedParts, delta: pb.ParsedDelta) -> None:
    try:
        parts.add(delta)
    except ValueError as error:
        raise DecodeError(str(error)) from error


def read_checkpoint(kept: bytes) -> internal_pb2.ItemCheckpoint | None:
    """What a checkpoint holds; None: nothing that can be gone on from."""
    if not kept:
        return None
    try:
        found = internal_pb2.ItemCheckpoint.FromString(kept)
    except DecodeError:
        return None
    return found if found.resume.delivered_token_ids else None
