"""Reads one line of a batch file: Chiron's own form, or the one of OpenAI's batches. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from chiron.cli.batch.openai_lines import OPENAI_KEYS, from_openai
from chiron.client import Grammar, JsonObject, JsonSchema, MalformedItem, OneOf, Regex

Item = dict[str, Any] | MalformedItem
_STRUCTURED = ("json_schema", "json_object", "regex", "grammar", "choice")


def read_line(line: bytes, model: str = "") -> Item:
    """The item that a line describes, or why it describes none.

    Args:
        line: without its end.
        model: of a line that names none.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return MalformedItem(f"not UTF-8: {error.reason} at byte {error.start + 1}")
    try:
        found = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        return MalformedItem(f"no JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return MalformedItem(f"no JSON: {error}")
    if not isinstance(found, dict):
        return MalformedItem(f"must be a JSON object, not {type(found).__name__}")
    custom_id = found.get("custom_id", "")
    if not isinstance(custom_id, str):
        return MalformedItem("custom_id: must be a text")
    try:
        return from_openai(found, model) if OPENAI_KEYS & found.keys() else _own(found, model)
    except ValueError as error:
        return MalformedItem(str(error), custom_id)


def _own(found: dict[str, Any], model: str) -> dict[str, Any]:
    item = {name: value for name, value in found.items() if value is not None}
    if model:
        item.setdefault("model", model)
    if "structured_output" in item:
        item["structured_output"] = _structured(item["structured_output"])
    if "logit_bias" in item:
        item["logit_bias"] = token_numbers(item["logit_bias"], "logit_bias")
    return item


def _structured(value: Any) -> JsonSchema | JsonObject | Regex | Grammar | OneOf:
    if not isinstance(value, Mapping) or len(value) != 1 or (kind := next(iter(value))) not in _STRUCTURED:
        raise ValueError(f"structured_output: must have exactly one of {', '.join(_STRUCTURED)}")
    content = value[kind]
    match kind, content:
        case "json_schema", dict() | str():
            return JsonSchema(content)
        case "json_object", True:
            return JsonObject()
        case "regex", str():
            return Regex(content)
        case "grammar", str():
            return Grammar(content)
        case "choice", list():
            return OneOf(content)
    raise ValueError(f"structured_output.{kind}: cannot be {content!r}")


def token_numbers(value: Any, name: str) -> dict[int, Any]:
    """A mapping by token id; JSON's keys are texts. Raises ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: must be an object")
    try:
        return {int(token): bias for token, bias in value.items()}
    except ValueError:
        raise ValueError(f"{name}: its keys must be token ids") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
