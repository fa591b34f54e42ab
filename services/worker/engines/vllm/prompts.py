"""Turns a request's input into token ids."""

from __future__ import annotations

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
        self._template = load_template(chat_template) or getattr(tokenizer, "chat_template", None)
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
        variables = _plain(chat.template_kwargs)
        for name in variables.keys() & _OWN_KEYWORDS:
            raise InvalidRequestError(f"chat.template_kwargs.{name}", "cannot be set")
        from jinja2 import TemplateError

        try:
            ids = self._render(
                [_message(each) for each in chat.messages], [_plain(tool) for tool in chat.tools], variables
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequestError("chat", f"the chat template refuses this: {error}") from error
        if not ids:
            raise InvalidRequestError("chat.messages", "the chat template renders them to nothing")
        return ids

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], variables: dict[str, Any]
    ) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=self._template,
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


def _plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = whole_numbers(json_format.MessageToDict(struct))
    return plain


def _message(message: pb.ChatMessage) -> dict[str, Any]:
    """One message in the form that chat templates expect; empty optional fields are left out."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_plain(call) for call in message.tool_calls]
    return plain
