"""From engine outputs to responses."""

from __future__ import annotations

from collections.abc import Iterator

from chiron.v1 import inference_pb2 as pb
from services.worker.call_reader import CallReader
from services.worker.engines.base import EngineOutput


class ResponseWriter:
    """Numbers one request's tokens and knows when its last choice has ended."""

    def __init__(self, choices: int, delivered_tokens: int = 0, calls: CallReader | None = None) -> None:
        """A writer.

        Args:
            choices: of the request.
            delivered_tokens: that each choice has from an earlier attempt.
            calls: reads the calls; None: they stay text.
        """
        self._calls = calls
        self._next_index = [delivered_tokens] * choices
        self._open = choices

    @property
    def complete(self) -> bool:
        """True once every choice has a finish reason."""
        return self._open == 0

    def write(self, output: EngineOutput) -> Iterator[pb.OutputDelta]:
        """The deltas of one engine output."""
        for delta in output.deltas:
            index = self._next_index[delta.choice]
            self._next_index[delta.choice] = index + len(delta.token_ids)
            self._open -= delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
            yield pb.OutputDelta(
                choice=delta.choice,
                first_token_index=index,
                token_ids=delta.token_ids,
                text=delta.text,
                text_ends=delta.text_ends,
                logprobs=delta.logprobs,
                finish_reason=delta.finish_reason,
                stop_match=delta.stop_match,
                parsed=self._calls.read(delta) if self._calls is not None else None,
            )
