"""Structured output: the token sequences that the sim engine can promise."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import InvalidRequestError
from services.worker.engines.sim import language, words
from services.worker.engines.sim.tokenizer import encode

_PATH = "sampling.structured_output"


def script(params: pb.SamplingParams, state: int, seed: int) -> Sequence[int] | None:
    """The whole output that a constraint leaves, without the end of sequence; None without a constraint.

    `choice` picks one of its values by the prompt (and the seed unless greedy); `json_object` makes a small
    object. Raises InvalidRequestError for the other kinds, which need a real grammar engine.
    """
    if not params.HasField("structured_output"):
        return None
    kind = params.structured_output.WhichOneof("constraint")
    if kind not in ("choice", "json_object"):
        raise InvalidRequestError(f"{_PATH}.{kind}", "the sim engine supports choice and json_object only")
    if params.logit_bias:
        raise InvalidRequestError("sampling.logit_bias", f"cannot be combined with {_PATH} on the sim engine")
    greedy = params.HasField("temperature") and params.temperature == 0
    draw = language.mix(state if greedy else state ^ language.mix(seed % (1 << 64)))
    if kind == "choice":
        values = params.structured_output.choice.values
        tokens = encode(values[draw % len(values)])
    else:
        tokens = encode(f'{{"answer": "{words.NOUNS[draw % len(words.NOUNS)]}"}}')
    if params.min_tokens > len(tokens):
        raise InvalidRequestError(
            "sampling.min_tokens", f"is {params.min_tokens}, the constraint allows {len(tokens)}"
        )
    return tokens
