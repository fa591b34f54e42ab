"""The events of a streamed text completion. Pure."""

from __future__ import annotations

from chiron.v1 import inference_pb2 as pb
from services.router.http import logprobs
from services.router.http.chunks import Chunks
from services.router.http.finish import finish_word


class CompletionChunks(Chunks):
    """Of one prompt or several: choices count on over them."""

    kind = "text_completion"
    before_text = ',"text":'
    after_text = ',"logprobs":null,"finish_reason":null}'

    def only_text(self, delta: pb.OutputDelta) -> str | None:
        """Always."""
        return delta.text

    def describe(
        self,
        choice: dict[str, object],
        delta: pb.OutputDelta,
        tokens: logprobs.Tokens | None,
        *,
        first: bool,
    ) -> None:
        """Writes what a choice gained."""
        choice["text"] = delta.text
        choice["logprobs"] = logprobs.completion(tokens) if tokens is not None else None
        choice["finish_reason"] = finish_word(delta.finish_reason) if delta.finish_reason else None
