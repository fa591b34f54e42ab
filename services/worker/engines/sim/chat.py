"""The sim engine's chat template: a role token, the text, an end token; then the assistant's turn."""

from __future__ import annotations

from google.protobuf import json_format

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import InvalidRequestError
from services.worker.engines.sim.tokenizer import encode
from services.worker.engines.sim.vocabulary import END_OF_TURN, ROLES


def render(chat: pb.ChatInput) -> list[int]:
    """Token ids of a conversation. Raises InvalidRequestError for a role or a variable it does not know."""
    if not chat.messages:
        raise InvalidRequestError("chat.messages", "must not be empty")
    if chat.template_kwargs.fields:
        name = min(chat.template_kwargs.fields)
        raise InvalidRequestError(
            f"chat.template_kwargs.{name}", "the sim engine's template does not have it"
        )
    tokens: list[int] = []
    for tool in chat.tools:
        tokens += [ROLES["system"], *encode(_json(tool)), END_OF_TURN]
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            known = ", ".join(ROLES)
            raise InvalidRequestError(f"chat.messages[{index}].role", f"must be one of {known}")
        parts = [message.name, message.tool_call_id, message.content, *map(_json, message.tool_calls)]
        tokens += [ROLES[message.role], *encode("\n".join(filter(None, parts))), END_OF_TURN]
    return [*tokens, ROLES["assistant"]]


def _json(message: object) -> str:
    return json_format.MessageToJson(message, indent=None, sort_keys=True)  # type: ignore[arg-type]
