"""Lines in the form of OpenAI's batches: method, url and the body of a request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chiron.client import JsonObject, JsonSchema

OPENAI_KEYS = {"body", "url", "method"}
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_COMPLETION_TOKENS = 16
"""What OpenAI's completions produce where the request does not say."""
_SAME = ("temperature", "top_p", "n", "presence_penalty", "frequency_penalty", "seed", "stop", "max_tokens")
"""Parameters that mean the same here."""
_OURS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "priority")
"""Parameters beyond OpenAI's, as other servers take them in the same place."""
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""What tells OpenAI something that has no meaning here."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""Parameters that can be there with these values alone."""


def from_openai(line: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The item of a line. Raises ValueError that names what does not fit.

    Args:
        line: the whole object.
        model: of a body that names none.
    """
    unknown = sorted(line.keys() - {"custom_id", *OPENAI_KEYS})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} beside method, url and body")
    if line.get("method", "POST") != "POST":
        raise ValueError(f"method: must be POST, not {line['method']!r}")
    url, body = line.get("url"), line.get("body")
    if url not in (_CHAT, _COMPLETIONS):
        raise ValueError(f"url: must be {_CHAT} or {_COMPLETIONS}, not {url!r}")
    if not isinstance(body, dict):
        raise ValueError("body: must be an object")
    body = {name: value for name, value in body.items() if value is not None}
    item: dict[str, Any] = {"custom_id": line.get("custom_id", ""), "model": body.pop("model", model)}
    (_chat if url == _CHAT else _completion)(body, item)
    for name in (*_SAME, *_OURS):
        if name in body:
            item[name] = body.pop(name)
    if "logit_bias" in body:
        bias = body.pop("logit_bias")
        if not isinstance(bias, dict) or not all(token.isdecimal() for token in bias):
            raise ValueError("body.logit_bias: must be an object with token ids as keys")
        item["logit_bias"] = {int(token): value for token, value in bias.items()}
    if "response_format" in body:
        _response_format(body.pop("response_format"), item)
    for name, value in body.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name not in _ONLY:
            raise ValueError(f"body.{name}: is not supported")
        if value not in _ONLY[name]:
            raise ValueError(f"body.{name}: {value!r} is not supported")
    return item


def _chat(body: dict[str, Any], item: dict[str, Any]) -> None:
    messages = body.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise ValueError("body.messages: must be a list with at least one message")
    item["messages"] = [_message(message, f"body.messages[{n}]") for n, message in enumerate(messages)]
    if "tools" in body:
        item["tools"] = body.pop("tools")
    if "chat_template_kwargs" in body:
        item["template_kwargs"] = body.pop("chat_template_kwargs")
    if "max_completion_tokens" in body:
        item["max_tokens"] = body.pop("max_completion_tokens")
        body.pop("max_tokens", None)
    wanted, alternatives = body.pop("logprobs", False), body.pop("top_logprobs", 0)
    if wanted is True:
        item["logprobs"] = alternatives
    elif wanted or alternatives:
        raise ValueError("body.logprobs: must be true or false, and true where top_logprobs is given")


def _completion(body: dict[str, Any], item: dict[str, Any]) -> None:
    prompt = body.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, str):
        item["prompt"] = prompt
    elif isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        item["prompt_token_ids"] = prompt
    else:
        raise ValueError("body.prompt: must be one text or one list of token ids")
    body.setdefault("max_tokens", _COMPLETION_TOKENS)
    if "logprobs" in body:
        item["logprobs"] = body.pop("logprobs")


def _message(message: Any, path: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"{path}: must be an object")
    known: dict[str, Callable[[Any, str], Any]] = {
        "role": _as_it_is,
        "content": _content,
        "name": _as_it_is,
        "tool_call_id": _as_it_is,
        "tool_calls": _as_it_is,
    }
    unknown = sorted(name for name, value in message.items() if name not in known and value is not None)
    if unknown:
        raise ValueError(f"{path}.{unknown[0]}: is not supported")
    made = {
        name: known[name](value, f"{path}.{name}") for name, value in message.items() if value is not None
    }
    if "role" not in made:
        raise ValueError(f"{path}.role: is required")
    made.setdefault("content", "")
    return made


def _as_it_is(value: Any, path: str) -> Any:
    return value


def _content(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{path}: must be a text or a list of parts")
    texts = []
    for n, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{path}[{n}]: only parts of the type text are supported")
        texts.append(part["text"])
    return "".join(texts)


def _response_format(value: Any, item: dict[str, Any]) -> None:
    match value:
        case {"type": "text"}:
            return
        case {"type": "json_object"}:
            item["structured_output"] = JsonObject()
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            item["structured_output"] = JsonSchema(schema)
        case _:
            raise ValueError("body.response_format: must be of the type text, json_object or json_schema")
