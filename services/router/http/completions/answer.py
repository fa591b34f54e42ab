"""A whole text completion: of a request that is not streamed, and of a line of a batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chiron.v1 import batch_pb2
from services.router.http import logprobs
from services.router.http.finish import finish_word
from services.router.http.head import Head, fingerprint, summed, usage


def whole(output: batch_pb2.ItemOutput, head: Head) -> dict[str, Any]:
    """The answer as OpenAI has it. Raises ChironError: the engine gave a choice up."""
    return whole_of([output], head)


def whole_of(outputs: Sequence[batch_pb2.ItemOutput], head: Head) -> dict[str, Any]:
    """One answer to several prompts, in their order. Raises ChironError: the engine gave a choice up."""
    choices = [choice for output in outputs for choice in output.choices for _ in range(head.copies)]
    counts = summed(output.usage for output in outputs)
    answer: dict[str, Any] = {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [_choice(index, choice, head) for index, choice in enumerate(choices)],
        "usage": usage(counts, head.copies),
        "system_fingerprint": fingerprint(head.model, outputs[0].spec_version),
    }
    if head.tier:
        answer["service_tier"] = head.tier
    return answer


def _choice(index: int, choice: batch_pb2.ItemChoice, head: Head) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": index,
        "text": choice.text,
        "logprobs": logprobs.completion(_tokens(choice, head)) if choice.logprobs else None,
        "finish_reason": finish_word(choice.finish_reason),
    }
    if choice.stop_match:
        told["stop_reason"] = choice.stop_match
    if head.token_ids:
        told["token_ids"] = list(choice.token_ids)
    return told


def _tokens(choice: batch_pb2.ItemChoice, head: Head) -> logprobs.Tokens:
    return logprobs.Tokens(
        choice.text, choice.token_ids, choice.text_ends, choice.logprobs, as_ids=head.tokens_as_ids
    )
