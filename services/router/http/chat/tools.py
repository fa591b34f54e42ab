"""From OpenAI's tools, and what is said of calling them, to those of the wire. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from chiron.v1 import inference_pb2 as pb
from services.router.http.chat.structs import to_struct
from services.router.http.errors import HttpError
from services.router.http.fields import Fields
from services.router.http.reading import invalid

_CHOICES = {
    "none": pb.TOOL_CHOICE_NONE,
    "auto": pb.TOOL_CHOICE_AUTO,
    "required": pb.TOOL_CHOICE_REQUIRED,
}


class Definition(Fields):
    """A function that may be called."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool; those that are no functions are refused by their type."""

    type: Literal["function"]
    function: Definition


def put_tools(chat: pb.ChatInput, tools: list[Tool], choice: JsonValue, *, parallel: bool | None) -> None:
    """Writes the tools, and which of them is to be called, into a chat. Raises HttpError.

    Args:
        chat: takes them.
        tools: the request's.
        choice: its `tool_choice`; None: the model decides where there are tools.
        parallel: its `parallel_tool_calls`.
    """
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice)
    kind, name = _choice(choice)
    if not tools:
        if choice is not None and kind != pb.TOOL_CHOICE_NONE:
            text = "'tool_choice' other than none is only allowed where there are 'tools'."
            raise invalid(text, "tool_choice")
        return
    names = {tool.function.name for tool in tools}
    if kind == pb.TOOL_CHOICE_NAMED and name not in names:
        raise _unknown(name, "tool_choice")
    for index, tool in enumerate(tools):
        chat.tools.append(to_struct(tool.model_dump(exclude_none=True), f"tools[{index}]"))
    chat.tool_choice = kind
    if kind == pb.TOOL_CHOICE_NAMED:
        chat.named_tool = name
    if parallel is not None and kind != pb.TOOL_CHOICE_NONE:
        chat.parallel_tool_calls = parallel


def _choice(choice: JsonValue) -> tuple[pb.ToolChoice.ValueType, str]:
    if choice is None:
        return pb.TOOL_CHOICE_AUTO, ""
    if isinstance(choice, str) and choice in _CHOICES:
        return _CHOICES[choice], ""
    if isinstance(choice, dict):
        return pb.TOOL_CHOICE_NAMED, _named(choice, "tool_choice")
    text = "'tool_choice' must be none, auto, required or an object that names a function."
    raise invalid(text, "tool_choice")


def _allowed(tools: list[Tool], choice: dict[str, Any]) -> tuple[list[Tool], JsonValue]:
    """The tools that `allowed_tools` leaves, and how they are to be called."""
    at = "tool_choice.allowed_tools"
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise invalid(f"'{at}' must be an object with 'mode' and a non-empty array of 'tools'.", at)
    if allowed.get("mode") not in ("auto", "required"):
        raise invalid(f"'{at}.mode' must be auto or required.", f"{at}.mode")
    names = [_named(each, f"{at}.tools[{index}]") for index, each in enumerate(allowed["tools"])]
    known = {tool.function.name for tool in tools}
    for index, name in enumerate(names):
        if name not in known:
            raise _unknown(name, f"{at}.tools[{index}]")
    return [tool for tool in tools if tool.function.name in names], allowed["mode"]


def _named(found: JsonValue, at: str) -> str:
    function = found.get("function") if isinstance(found, dict) else None
    kind = found.get("type") if isinstance(found, dict) else None
    if kind != "function":
        raise invalid(f"{at}: only tools of type 'function' are supported.", at)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid(f"Missing required parameter: '{at}.function.name'.", at, "missing_required_parameter")
    return name


def _unknown(name: str, at: str) -> HttpError:
    return invalid(f"{at}: 'tools' has no function {name[:64]!r}.", at)
