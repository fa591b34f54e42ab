"""A whole chat completion: of a request that is not streamed, and of a line of a batch. Pure."""

from __future__ import annotations

from typing import Any

from chiron.v1 import batch_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.http import logprobs
from services.router.http.finish import finish_word
from services.router.http.head import Head, fingerprint, usage


def whole(output: batch_pb2.ItemOutput, head: Head) -> dict[str, Any]:
    """The answer as OpenAI has it. Raises ChironError: the engine gave a choice up."""
    choices = [choice for choice in output.choices for _ in range(head.copies)]
    answer: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [_choice(index, choice, head) for index, choice in enumerate(choices)],
        "usage": usage(output.usage, head.copies),
        "system_fingerprint": fingerprint(head.model, output.spec_version),
    }
    if head.tier:
        answer["service_tier"] = head.tier
    return answer


def _choice(index: int, choice: batch_pb2.ItemChoice, head: Head) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.HasField("parsed"):
        parsed = choice.parsed
        message["content"] = parsed.content or (None if parsed.tool_calls else "")
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.tool_calls:
            message["tool_calls"] = [_call(call) for call in parsed.tool_calls]
    told: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": logprobs.chat(_tokens(choice, head)) if choice.logprobs else None,
        "finish_reason": finish_word(choice.finish_reason, calls="tool_calls" in message),
    }
    if choice.stop_match:
        told["stop_reason"] = choice.stop_match
    if head.token_ids:
        told["token_ids"] = list(choice.token_ids)
    return told


def _call(call: pb.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tokens(choice: batch_pb2.ItemChoice, head: Head) -> logprobs.Tokens:
    return logprobs.Tokens(
        choice.text, choice.token_ids, choice.text_ends, choice.logprobs, as_ids=head.tokens_as_ids
    )
