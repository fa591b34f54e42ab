"""How a choice ended, in OpenAI's words. Pure."""

from __future__ import annotations

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb

_WORDS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def finish_word(reason: pb.FinishReason.ValueType, *, calls: bool = False) -> str:
    """`finish_reason` of a choice that has ended.

    Args:
        reason: the engine's.
        calls: whether it has called tools.

    Raises:
        ChironError: ABORTED: the engine gave it up, for which OpenAI has no word but an error.
    """
    word = _WORDS.get(reason)
    if word is None:
        raise ChironError(Reason.ABORTED, "the engine gave the answer up before its end; ask again")
    return "tool_calls" if calls and word == "stop" else word
