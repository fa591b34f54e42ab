"""What the sim engine's model does with tools: it calls what the last user message tells it to call.

A line `call NAME ARGUMENTS` of that message is a call, a line `say TEXT` is text before, between or after
calls, any other line says nothing; in this order, word for word, they are the whole answer. A message without
a `call` line is answered with ordinary text, unless a call is forced: then the named tool, or the first one,
is called with the simplest arguments that its schema allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format

from chiron.requests.tools import tool_name
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineLoadError
from services.worker.engines.calls import Calls
from services.worker.engines.sim.call_parser import CLOSE, OPEN, HermesParser

PARSER = "hermes"
"""The only one."""
_SIMPLEST: dict[str, Any] = {
    "string": "sea", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None,
}  # fmt: skip
_DEEPEST = 32


def check_parser(name: str) -> None:
    """Raises EngineLoadError for a parser that there is not; empty: none is asked for."""
    if name not in ("", PARSER):
        raise EngineLoadError(f"tool_parser: the sim engine has no {name!r}; it has {PARSER}")


def calls(request: pb.GenerateRequest) -> Calls:
    """How a request's calls come about: where the model calls at all, as a constraint of its output."""
    sampling = pb.SamplingParams()
    sampling.CopyFrom(request.sampling)
    answer = _answer(request.chat)
    if answer and not sampling.HasField("structured_output"):
        sampling.structured_output.choice.values.append(answer)
    return Calls(sampling, lambda prompt: HermesParser())


def _answer(chat: pb.ChatInput) -> str:
    """What the model writes; empty: ordinary text."""
    told = list(_told(chat))
    named = chat.named_tool
    if any(name and named in ("", name) for name, _ in told):
        return "\n".join(_written(name, text) if name else text for name, text in told)
    if chat.tool_choice == pb.TOOL_CHOICE_AUTO:
        return ""
    tool = next(tool for tool in chat.tools if named in ("", tool_name(tool)))
    schema = json_format.MessageToDict(tool)["function"].get("parameters") or {}
    return _written(tool_name(tool), json.dumps(_simplest({"type": "object", **schema}), ensure_ascii=False))


def _told(chat: pb.ChatInput) -> Iterator[tuple[str, str]]:
    """Name and arguments of each call that the last user message asks for; without a name, text to say."""
    asked = next((message.content for message in reversed(chat.messages) if message.role == "user"), "")
    for line in asked.split("\n"):
        verb, _, rest = line.partition(" ")
        if verb == "say":
            yield "", rest
        elif verb == "call" and rest:
            name, _, arguments = rest.partition(" ")
            yield name, arguments or "{}"


def _written(name: str, arguments: str) -> str:
    return f'{OPEN}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n{CLOSE}'


def _simplest(schema: Any, depth: int = 0) -> Any:
    """A value that a JSON schema of the common kinds allows; what it refers to by name is not looked up."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    if isinstance(options := schema.get("anyOf") or schema.get("oneOf"), list):
        return _simplest(options[0], depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            return {key: _simplest(properties.get(key), depth + 1) for key in required}
    return _SIMPLEST.get(str(kind))
