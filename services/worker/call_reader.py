"""Reads the calls in one request's output with the engine's parser, token by token."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from chiron.v1 import inference_pb2 as pb
from services.worker.call_ids import call_id
from services.worker.engines.base import ChoiceDelta
from services.worker.engines.calls import CallParser, Calls

_log = logging.getLogger(__name__)


class CallReader:
    """One request's parsers, one for each choice."""

    def __init__(
        self,
        calls: Calls,
        prompt: Sequence[int],
        *,
        request_id: str,
        choices: int,
        one_call: bool,
        delivered: ChoiceDelta | None = None,
    ) -> None:
        """Parsers at the beginning of the output, or after what was delivered of it.

        Args:
            calls: the engine's word.
            prompt: its token ids.
            request_id: what the ids of calls are made from.
            choices: of the request.
            one_call: only the first call of each choice counts.
            delivered: of a resumed request with one choice; what it yields has been delivered, too.
        """
        self._readers = [
            _Reader(calls.parser(prompt), f"{request_id}/{index}", one_call=one_call)
            for index in range(choices)
        ]
        if delivered is not None:
            self._readers[0].read(delivered)

    def read(self, delta: ChoiceDelta) -> pb.ParsedDelta | None:
        """What a delta brings; None: nothing, and the choice goes on."""
        found = self._readers[delta.choice].read(delta)
        ends = delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        return found if ends or found.ByteSize() else None


class _Reader:
    def __init__(self, parser: CallParser, key: str, *, one_call: bool) -> None:
        self._parser: CallParser | None = parser
        self._key = key
        self._one_call = one_call
        self._length = 0
        """Code points of text so far."""
        self._places: dict[int, int] = {}
        """The engine's index of a call → its place among those with a name."""
        self._early: dict[int, str] = {}
        """Arguments of calls that have no name yet, by the engine's index."""

    def read(self, delta: ChoiceDelta) -> pb.ParsedDelta:
        out = pb.ParsedDelta()
        finished = delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        pieces = list(self._pieces(delta))
        for number, (tokens, text) in enumerate(pieces, start=1):
            if self._parser is None:
                out.content += text
            else:
                self._feed(self._parser, tokens, text, out, finished=finished and number == len(pieces))
        return out

    def _pieces(self, delta: ChoiceDelta) -> Iterator[tuple[Sequence[int], str]]:
        """Each token with its text; then text that came without one, or an end without anything."""
        base = self._length
        self._length += len(delta.text)
        start = 0
        for token, end in zip(delta.token_ids, delta.text_ends, strict=True):
            yield (token,), delta.text[start : end - base]
            start = max(start, end - base)
        if start < len(delta.text) or not delta.token_ids:
            yield (), delta.text[start:]

    def _feed(
        self, parser: CallParser, tokens: Sequence[int], text: str, out: pb.ParsedDelta, *, finished: bool
    ) -> None:
        try:
            found = parser.feed(tokens, text, finished=finished)
        except Exception as error:
            _log.exception("the parser of tool calls failed; the rest of this output is content")
            self._parser = None
            out.error = (
                f"the parser of tool calls failed: {type(error).__name__}: {' '.join(str(error).split())}"
            )
            out.content += text
            return
        out.content += found.content
        out.reasoning += found.reasoning
        for piece in found.tool_calls:
            self._add(piece, out)

    def _add(self, piece: pb.ToolCallDelta, out: pb.ParsedDelta) -> None:
        """Adds a piece so that each call begins with its name and no place is skipped."""
        begins = piece.index not in self._places
        if begins and not piece.name:
            self._early[piece.index] = self._early.get(piece.index, "") + piece.arguments
            return
        told = pb.ToolCallDelta(
            index=self._places.setdefault(piece.index, len(self._places)), arguments=piece.arguments
        )
        if begins:
            told.name, told.arguments = piece.name, self._early.pop(piece.index, "") + piece.arguments
            told.id = call_id(self._key, told.index, piece.id)
        if not (self._one_call and told.index):
            add_piece(out, told)


def add_piece(out: pb.ParsedDelta, piece: pb.ToolCallDelta) -> None:
    """Adds what a call gained after all that is there; arguments that follow each other become one piece."""
    last = out.tool_calls[-1] if out.tool_calls else None
    if last is not None and last.index == piece.index and not piece.name:
        last.arguments += piece.arguments
    else:
        out.tool_calls.add().CopyFrom(piece)


def join(out: pb.ParsedDelta, more: pb.ParsedDelta) -> None:
    """Adds a later delta of the same choice."""
    out.content += more.content
    out.reasoning += more.reasoning
    out.error = out.error or more.error
    for piece in more.tool_calls:
        add_piece(out, piece)
