"""The body of a chat completion, and the request that it comes to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from chiron.requests.validation import MAX_MESSAGES, MAX_TOOLS
from chiron.v1 import inference_pb2 as pb
from services.router.http.chat.messages import Message, to_messages
from services.router.http.chat.structs import to_struct
from services.router.http.chat.tools import Tool, put_tools
from services.router.http.fields import ACCEPTED as COMMON
from services.router.http.fields import REFUSED as NOT_SERVED
from services.router.http.fields import Refusal, TextFields, refusal
from services.router.http.models import split
from services.router.http.promises import Promises
from services.router.http.reading import invalid, read
from services.router.http.sampling import most_tokens, to_sampling


class ChatRequest(TextFields):
    """What is served of it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: JsonValue = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


ACCEPTED = COMMON | {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "store",
    "include_reasoning",
}
"""Harmless without effect: a prediction only saves time, prefixes are cached unasked, nothing is stored."""

_OWN_TEMPLATE = "the template is the model's own; `chat_template_kwargs` sets its variables"
REFUSED: dict[str, Refusal] = NOT_SERVED | {
    "audio": refusal("audio is not generated; only text is"),
    "modalities": refusal("only text is generated", ["text"]),
    "function_call": refusal("OpenAI has replaced it by `tool_choice`, which is served"),
    "functions": refusal("OpenAI has replaced it by `tools`, which are served"),
    "moderation": refusal("nothing is moderated here"),
    "verbosity": refusal("models here know no verbosity; say it in a message", "medium"),
    "web_search_options": refusal("nothing is searched here"),
    "chat_template": refusal(_OWN_TEMPLATE),
    "add_generation_prompt": refusal(_OWN_TEMPLATE, True),
    "continue_final_message": refusal("the answer is a message of its own", False),
    "add_special_tokens": refusal(_OWN_TEMPLATE, False),
    "echo": refusal("messages are not sent back", False),
    "documents": refusal("templates are not given documents; put them into a message", []),
    "mm_processor_kwargs": refusal("only text is understood", {}),
    "thinking_token_budget": refusal("not supported; `max_completion_tokens` bounds everything"),
}


def read_chat(found: Mapping[str, Any]) -> ChatRequest:
    """The fields of a body. Raises HttpError, for the first that does not fit."""
    return read(ChatRequest, found, ACCEPTED, REFUSED)


def to_generate(request: ChatRequest, promises: Promises) -> pb.GenerateRequest:
    """The request that it comes to. Raises HttpError."""
    chat = pb.ChatInput(messages=to_messages(request.messages))
    put_tools(chat, request.tools or [], request.tool_choice, parallel=request.parallel_tool_calls)
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    if variables:
        chat.template_kwargs.CopyFrom(to_struct(variables, "chat_template_kwargs"))
    model, adapter = split(request.model)
    message = pb.GenerateRequest(
        request_id=request.request_id or "",
        model=model,
        adapter=adapter,
        chat=chat,
        sampling=to_sampling(request, max_tokens=most_tokens(request), logprobs=_logprobs(request)),
    )
    promises.put(message)
    return message


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None
