"""From a request's fields to the engine's sampling parameters. Pure.

Ranges are judged by `chiron.requests.validation`, as at every door; here is what only this API knows.
"""

from __future__ import annotations

import json

from chiron.v1 import inference_pb2 as pb
from services.router.http.errors import HttpError
from services.router.http.fields import ResponseFormat, StructuredOutputs, TextFields
from services.router.http.reading import invalid

_SAME = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_p",
    "seed",
    "min_tokens",
    "ignore_eos",
)
"""Fields that have the same name and meaning in SamplingParams."""


def most_tokens(request: TextFields) -> int | None:
    """Most output tokens of a choice; None: not said. Raises HttpError: said twice, and not the same."""
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        text = f"'max_tokens' ({old}) and 'max_completion_tokens' ({new}) mean the same and differ."
        raise invalid(text, "max_tokens")
    return old if new is None else new


def to_sampling(request: TextFields, *, max_tokens: int | None, logprobs: int | None) -> pb.SamplingParams:
    """What the engine is asked for.

    Args:
        request: the fields.
        max_tokens: most output tokens of a choice; None: as many as the context has room for.
        logprobs: alternatives for each output token; None: no log probabilities.

    Raises:
        HttpError: fields that contradict each other, or that no engine could understand.
    """
    if request.stream_options is not None and not request.streams:
        raise invalid("'stream_options' needs 'stream' to be true.", "stream_options")
    sampling = pb.SamplingParams(
        n=1 if request.copies > 1 else request.n or 0,
        stop=request.stop or (),
        stop_token_ids=request.stop_token_ids or (),
        include_stop=bool(request.include_stop_str_in_output),
        keep_special_tokens=request.skip_special_tokens is False,
    )
    for name in _SAME:
        value = getattr(request, name)
        if value is not None:
            setattr(sampling, name, value)
    if max_tokens is not None:
        sampling.max_tokens = max_tokens
    if logprobs is not None:
        sampling.logprobs = logprobs
    if request.top_k is not None and request.top_k > 0:
        sampling.top_k = request.top_k
    for token, bias in (request.logit_bias or {}).items():
        sampling.logit_bias[_token(token)] = bias
    _constrain(sampling, request.response_format, request.structured_outputs)
    return sampling


def _token(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < 2**32):
        raise invalid(f"Invalid key in 'logit_bias': {key[:40]!r} is no token id.", "logit_bias")
    return int(key)


def _constrain(
    sampling: pb.SamplingParams, wanted: ResponseFormat | None, own: StructuredOutputs | None
) -> None:
    if wanted is not None and wanted.type != "text":
        if own is not None:
            raise invalid(
                "'structured_outputs' and 'response_format' cannot both constrain the output.",
                "structured_outputs",
            )
        _by_format(sampling.structured_output, wanted)
    elif own is not None:
        _by_own_words(sampling.structured_output, own)


def _by_format(output: pb.StructuredOutput, wanted: ResponseFormat) -> None:
    if wanted.type == "json_object":
        output.json_object = True
        return
    if wanted.json_schema is None:
        raise _missing("response_format.json_schema")
    if wanted.json_schema.schema_ is None:
        raise _missing("response_format.json_schema.schema")
    output.json_schema = json.dumps(wanted.json_schema.schema_)


def _missing(param: str) -> HttpError:
    return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def _by_own_words(output: pb.StructuredOutput, own: StructuredOutputs) -> None:
    given = own.model_dump(exclude_none=True, by_alias=True)
    if len(given) != 1:
        raise invalid(
            "'structured_outputs' must have exactly one of json, json_object, regex, grammar and choice.",
            "structured_outputs",
        )
    if own.json_ is not None:
        output.json_schema = own.json_ if isinstance(own.json_, str) else json.dumps(own.json_)
    elif own.choice is not None:
        output.choice.values.extend(own.choice)
    else:
        for name, value in given.items():
            setattr(output, name, value)
