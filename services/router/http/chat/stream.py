"""The events of a streamed chat completion. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from chiron.v1 import inference_pb2 as pb
from services.router.http.chunks import Chunks
from services.router.http.finish import finish_word
from services.router.http.head import Head
from services.router.http.logprobs import Tokens
from services.router.http.logprobs import chat as chat_logprobs


class ChatChunks(Chunks):
    """The first event of a choice says who speaks, and brings what the first message has."""

    kind = "chat.completion.chunk"
    before_text = ',"delta":{"content":'
    after_text = '},"logprobs":null,"finish_reason":null}'

    def __init__(
        self,
        head: Head,
        *,
        choices: int = 1,
        counts: bool = False,
        logprobs: bool = False,
        parsed: bool = False,
    ) -> None:
        """An answer of which nothing has been written.

        Args:
            head: of the answer.
            choices: copies included.
            counts: whether the token counts come at its end.
            logprobs: whether log probabilities were asked for.
            parsed: whether calls of tools are parsed, so that a delta's text is not what is said.
        """
        super().__init__(head, choices=choices, counts=counts, logprobs=logprobs)
        self._parsed = parsed
        self._calling: set[int] = set()

    def only_text(self, delta: pb.OutputDelta) -> str | None:
        """Also of a parsed one."""
        if not self._parsed:
            return delta.text
        parsed = delta.parsed
        return None if parsed.tool_calls or parsed.reasoning else parsed.content

    def describe(
        self,
        choice: dict[str, object],
        delta: pb.OutputDelta,
        tokens: Tokens | None,
        *,
        first: bool,
    ) -> None:
        """Writes what a choice gained."""
        gained: dict[str, object] = {}
        said = delta.parsed.content if self._parsed else delta.text
        if first:
            gained["role"] = "assistant"
        if said or (first and not delta.parsed.tool_calls):
            gained["content"] = said
        if delta.parsed.reasoning:
            gained["reasoning_content"] = delta.parsed.reasoning
        if delta.parsed.tool_calls:
            self._calling.add(delta.choice)
            gained["tool_calls"] = _calls(delta.parsed.tool_calls)
        choice["delta"] = gained
        choice["logprobs"] = chat_logprobs(tokens) if tokens is not None else None
        choice["finish_reason"] = (
            finish_word(delta.finish_reason, calls=delta.choice in self._calling)
            if delta.finish_reason
            else None
        )


def _calls(pieces: Iterable[pb.ToolCallDelta]) -> list[dict[str, object]]:
    """What calls gained, each of them once: clients take a second entry of one call for another call."""
    calls: dict[int, pb.ToolCallDelta] = {}
    for piece in pieces:
        known = calls.setdefault(piece.index, pb.ToolCallDelta(index=piece.index))
        known.id, known.name = known.id or piece.id, known.name or piece.name
        known.arguments += piece.arguments
    return [_call(call) for call in calls.values()]


def _call(call: pb.ToolCallDelta) -> dict[str, object]:
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
