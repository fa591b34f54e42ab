"""From the API's sampling parameters to vLLM's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import InvalidRequestError

_FIELDS = {
    "include_stop_str_in_output": "include_stop",
    "skip_special_tokens": "keep_special_tokens",
}
"""vLLM's names of fields that the API calls otherwise."""


def sampling_params(sampling: pb.SamplingParams, vocabulary_size: int) -> Any:
    """vLLM's SamplingParams, streaming deltas. Raises InvalidRequestError naming the field."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    _check_token_ids("logit_bias", sampling.logit_bias, vocabulary_size)
    _check_token_ids("stop_token_ids", sampling.stop_token_ids, vocabulary_size)
    try:
        return SamplingParams(
            n=sampling.n or 1,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature if sampling.HasField("temperature") else 1.0,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty
            if sampling.HasField("repetition_penalty")
            else 1.0,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop=list(sampling.stop),
            stop_token_ids=list(sampling.stop_token_ids),
            include_stop_str_in_output=sampling.include_stop,
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
            logit_bias=dict(sampling.logit_bias) or None,
            structured_outputs=structured_params(sampling),
            skip_special_tokens=not sampling.keep_special_tokens,
            output_kind=RequestOutputKind.DELTA,
        )
    except (ValueError, client_error_type()) as error:
        raise invalid_request(sampling, error) from error


def client_error_type() -> type[Exception]:
    """What vLLM raises for a request that it refuses."""
    from vllm.exceptions import VLLMClientError

    found: type[Exception] = VLLMClientError
    return found


def invalid_request(sampling: pb.SamplingParams, error: BaseException) -> InvalidRequestError:
    """Names the field that vLLM complains about, as far as vLLM tells."""
    parameter = getattr(error, "parameter", None)
    parameter = _FIELDS.get(parameter, parameter) if isinstance(parameter, str) else None
    if parameter not in pb.SamplingParams.DESCRIPTOR.fields_by_name:
        # vLLM checks constraints late and does not name them.
        kind = sampling.structured_output.WhichOneof("constraint")
        parameter = f"structured_output.{kind}" if kind else None
    field = f"sampling.{parameter}" if parameter else "sampling"
    return InvalidRequestError(field, " ".join(str(error).split()))


def _check_token_ids(field: str, token_ids: Iterable[int], vocabulary_size: int) -> None:
    largest = max(token_ids, default=0)
    if largest >= vocabulary_size:
        raise InvalidRequestError(
            f"sampling.{field}", f"{largest} is outside the vocabulary of {vocabulary_size} tokens"
        )


def structured_params(sampling: pb.SamplingParams) -> Any:
    """vLLM's form of a constraint; None: there is none."""
    from vllm.sampling_params import StructuredOutputsParams

    wanted = sampling.structured_output
    match wanted.WhichOneof("constraint"):
        case None:
            return None
        case "json_schema":
            return StructuredOutputsParams(json=wanted.json_schema)
        case "json_object":
            return StructuredOutputsParams(json_object=True) if wanted.json_object else None
        case "regex":
            return StructuredOutputsParams(regex=wanted.regex)
        case "grammar":
            return StructuredOutputsParams(grammar=wanted.grammar)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=wanted.structural_tag)
        case "choice":
            return StructuredOutputsParams(choice=list(wanted.choice.values))
