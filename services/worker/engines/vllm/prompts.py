"""Turns a request's input into token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineLoadError, InvalidRequestError
from services.worker.engines.vllm.arguments import whole_numbers

_OWN_KEYWORDS = frozenset(
    {"conversation", "tools", "chat_template", "tokenize", "return_dict", "return_tensors"}
)

_ORDER = {
    key: place
    for place, key in enumerate(
        ("id", "type", "function", "name", "description", "parameters", "arguments", "properties", "required")
    )
}


class PromptTokenizer:
    """A model's tokenizer and chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat_template: path of a Jinja template or its text; empty: the tokenizer's own.
        vocabulary_size: token ids are below this.
    """

    def __init__(self, tokenizer: Any, chat_template: str, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        # A tokenizer may have several templates and picks by whether there are tools.
        self._given = load_template(chat_template) or None
        self._template = self._given or getattr(tokenizer, "chat_template", None)
        if chat_template:
            self._check_template()

    def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Token ids of the request's input. Raises InvalidRequestError."""
        match request.WhichOneof("input"):
            case "prompt":
                return self._text(request.prompt)
            case "prompt_token_ids":
                return self._ids(request.prompt_token_ids.ids)
            case "chat":
                return self._chat(request.chat)
            case _:
                raise InvalidRequestError("prompt", "one of prompt, prompt_token_ids and chat is required")

    def _text(self, prompt: str) -> Sequence[int]:
        if not prompt:
            raise InvalidRequestError("prompt", "must not be empty")
        ids: list[int] = self._tokenizer.encode(prompt)
        return ids

    def _ids(self, ids: Sequence[int]) -> Sequence[int]:
        if not ids:
            raise InvalidRequestError("prompt_token_ids", "must not be empty")
        largest = max(ids)
        if largest >= self._vocabulary_size:
            raise InvalidRequestError(
                "prompt_token_ids",
                f"{largest} is outside the vocabulary of {self._vocabulary_size} tokens",
            )
        return list(ids)

    def _chat(self, chat: pb.ChatInput) -> Sequence[int]:
        if not chat.messages:
            raise InvalidRequestError("chat.messages", "must not be empty")
        if not self._template:
            raise InvalidRequestError("chat", "this model has no chat template; send a prompt instead")
        variables = plain_struct(chat.template_kwargs)
        for name in variables.keys() & _OWN_KEYWORDS:
            raise InvalidRequestError(f"chat.template_kwargs.{name}", "cannot be set")
        from jinja2 import TemplateError

        try:
            tools = [plain_struct(tool) for tool in chat.tools]
            ids = self._render(plain_messages(chat), tools, variables)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequestError("chat", f"the chat template refuses this: {error}") from error
        if not ids:
            raise InvalidRequestError("chat.messages", "the chat template renders them to nothing")
        return ids

    def knows_tools(self) -> bool:
        """Whether the chat template shows tools to the model; a template that fails on a trial may."""
        if not self._template:
            return False
        from jinja2 import TemplateError

        parameters = {"type": "object", "properties": {}}
        function = {"name": "probe", "description": "A probe.", "parameters": parameters}
        asked = [{"role": "user", "content": "x"}]
        try:
            with_tool = self._render(asked, [{"type": "function", "function": function}], {})
            return with_tool != self._render(asked, [], {})
        except (TemplateError, TypeError, ValueError, KeyError):
            return True

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], variables: dict[str, Any]
    ) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=self._given,
            tokenize=True,
            return_dict=False,
            **{"add_generation_prompt": True, **variables},
        )
        return ids

    def _check_template(self) -> None:
        """Finds syntax errors at start; what a template thinks of a trial message is its own business."""
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            self._render([{"role": "user", "content": "x"}], [], {})
        except TemplateSyntaxError as error:
            raise EngineLoadError(f"chat_template: line {error.lineno}: {error.message}") from error
        except TemplateError:
            return


def load_template(template: str) -> str:
    """Text of a template given as text or as a path. Raises EngineLoadError for a path without a file."""
    if not template or "{" in template:
        return template
    try:
        return Path(template).read_text()
    except OSError as error:
        raise EngineLoadError(f"chat_template: cannot read {template}: {error.strerror}") from error


def plain_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as Python values, keys in an order that is the same in every process.

    What a template renders must be the same wherever a stream goes on, and a Struct does not keep its order:
    first the keys of OpenAI's tools in theirs, then the others by the alphabet.
    """
    plain: dict[str, Any] = whole_numbers(_ordered(json_format.MessageToDict(struct)))
    return plain


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=_place)}
    return [_ordered(each) for each in value] if isinstance(value, list) else value


def _place(key: str) -> tuple[int, str]:
    return _ORDER.get(key, len(_ORDER)), key


def plain_messages(chat: pb.ChatInput) -> list[dict[str, Any]]:
    """Messages in the form that chat templates expect; empty optional fields are left out."""
    return [_message(message) for message in chat.messages]


def _message(message: pb.ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    return plain


def _call(call: struct_pb2.Struct) -> dict[str, Any]:
    """A call of the conversation so far. Templates want its arguments as an object, OpenAI has them as text.

    What is no object, as the model may have written it, becomes an empty one: as on vLLM's own server, a
    conversation goes on from it.
    """
    plain = plain_struct(call)
    function = plain.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments", ""), str):
        try:
            arguments = json.loads(function.get("arguments", ""))
        except ValueError:
            arguments = None
        function["arguments"] = arguments if isinstance(arguments, dict) else {}
    return plain
