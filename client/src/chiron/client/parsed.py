"""Puts together what a choice has said and called, from the deltas of its stream. Pure."""

from __future__ import annotations

from chiron.v1 import inference_pb2 as pb


class ParsedParts:
    """What the deltas of one choice have brought so far."""

    def __init__(self, kept: pb.ParsedOutput | None = None) -> None:
        """Begins with nothing, or with what an earlier holder of the stream has kept."""
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._error = ""
        self._calls: list[pb.ToolCall] = []
        self._arguments: list[list[str]] = []
        self.any = kept is not None
        """Whether calls are parsed in this stream, as far as it shows."""
        if kept is not None:
            self._content, self._reasoning, self._error = [kept.content], [kept.reasoning], kept.error
            self._calls = list(kept.tool_calls)
            self._arguments = [[call.arguments] for call in kept.tool_calls]

    def add(self, delta: pb.ParsedDelta) -> None:
        """Takes the next delta in. Raises ValueError for a piece of a call that has not begun."""
        self.any = True
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        self._error = self._error or delta.error
        for piece in delta.tool_calls:
            if piece.name and piece.index == len(self._calls):
                self._calls.append(pb.ToolCall(id=piece.id, name=piece.name))
                self._arguments.append([])
            if piece.index >= len(self._calls):
                raise ValueError(f"a piece of call {piece.index} follows {len(self._calls)} calls")
            self._arguments[piece.index].append(piece.arguments)

    def so_far(self) -> pb.ParsedOutput:
        """All of it, as another holder of the stream goes on from."""
        calls = [
            pb.ToolCall(id=call.id, name=call.name, arguments="".join(arguments))
            for call, arguments in zip(self._calls, self._arguments, strict=True)
        ]
        return pb.ParsedOutput(
            content="".join(self._content),
            tool_calls=calls,
            reasoning="".join(self._reasoning),
            error=self._error,
        )

    def whole(self, text: str) -> pb.ParsedOutput:
        """Of a choice that has ended with this text: where its parser failed, the text and no calls."""
        if self._error:
            return pb.ParsedOutput(content=text, error=self._error)
        return self.so_far()
