"""From OpenAI's messages to those of the chat template. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from chiron.v1 import inference_pb2 as pb
from services.router.http.chat.structs import to_struct
from services.router.http.fields import Fields
from services.router.http.reading import invalid, read

Role = Literal["system", "developer", "user", "assistant", "tool"]
_JOIN = "\n"
"""Between the text parts of one message: chat templates take one string."""


class Function(Fields):
    """What a call calls."""

    name: str
    arguments: str


class ToolCall(Fields):
    """A call that an assistant's message made."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: Function


class Message(Fields):
    """One message; `content` is looked at by itself, for errors that name the part."""

    role: Role
    content: JsonValue = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    annotations: JsonValue = None
    """No effect, as the next two: answers may come back as they were."""
    reasoning_content: JsonValue = None
    reasoning: JsonValue = None
    audio: JsonValue = None
    function_call: JsonValue = None


def to_messages(messages: list[Message]) -> list[pb.ChatMessage]:
    """The messages for the template. Raises HttpError, with the message's index."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, at: str) -> pb.ChatMessage:
    if message.function_call is not None:
        raise invalid(f"{at}.function_call: OpenAI has replaced it by `tool_calls`, which is served.", at)
    if message.audio is not None:
        raise invalid(f"{at}.audio: audio is not supported; only text is.", f"{at}.audio")
    if message.tool_calls and message.role != "assistant":
        raise invalid(
            f"{at}.tool_calls: only a message of the role 'assistant' has them.", f"{at}.tool_calls"
        )
    if message.role == "tool" and not message.tool_call_id:
        param = f"{at}.tool_call_id"
        raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return pb.ChatMessage(
        role=message.role,
        content=_text(message, at),
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
        tool_calls=[
            to_struct(call.model_dump(), f"{at}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls or ())
        ],
    )


def _text(message: Message, at: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role != "assistant":
            param = f"{at}.content"
            raise invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        if message.refusal is None and not message.tool_calls:
            raise invalid(f"{at}.content: may only be left out beside `tool_calls`.", f"{at}.content")
        return message.refusal or ""
    if not isinstance(content, list):
        text = f"Invalid type for '{at}.content': expected a string or an array of content parts."
        raise invalid(text, f"{at}.content", "invalid_type")
    return _JOIN.join(_part(part, f"{at}.content[{index}]") for index, part in enumerate(content))


class _Text(Fields):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: JsonValue = None


class _Refused(Fields):
    type: Literal["refusal"]
    refusal: str


def _part(part: Any, at: str) -> str:
    if not isinstance(part, dict):
        raise invalid(f"Invalid type for '{at}': expected an object.", at, "invalid_type")
    kind = part.get("type")
    if kind == "text":
        return read(_Text, part, at=at).text
    if kind == "refusal":
        return read(_Refused, part, at=at).refusal
    if kind is None:
        raise invalid(f"Missing required parameter: '{at}.type'.", f"{at}.type", "missing_required_parameter")
    raise invalid(f"{at}: parts of type {str(kind)[:40]!r} are not supported; only text is.", f"{at}.type")
