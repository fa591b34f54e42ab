"""Whether a request's tool calls are parsed, and what makes its tools or its choice of them invalid. Pure."""

from __future__ import annotations

import reprlib

from google.protobuf import struct_pb2

from chiron.v1 import inference_pb2 as pb

MAX_TOOL_NAME = 256
"""Characters of a tool's name."""
_FORCED = (pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED)
_PARSED = (pb.TOOL_CHOICE_AUTO, *_FORCED)
_MOST_TOLD = 16
_FORM = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'


def parses_calls(request: pb.GenerateRequest) -> bool:
    """Whether the calls that the model writes are to be told apart from its text."""
    return request.WhichOneof("input") == "chat" and request.chat.tool_choice in _PARSED


def constrains_calls(request: pb.GenerateRequest) -> bool:
    """Whether an engine may have to constrain the output for the sake of calls."""
    chat = request.chat
    return parses_calls(request) and (
        chat.tool_choice in _FORCED or one_call(chat) or any(map(_strict, chat.tools))
    )


def one_call(chat: pb.ChatInput) -> bool:
    """Whether an answer may hold at most one call."""
    return chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls


def tool_name(tool: struct_pb2.Struct) -> str:
    """The name of a tool that `check_tools` finds nothing wrong with; empty for other tools."""
    function = tool.fields["function"].struct_value if "function" in tool.fields else struct_pb2.Struct()
    return function.fields["name"].string_value if "name" in function.fields else ""


def _strict(tool: struct_pb2.Struct) -> bool:
    """Whether a tool wants its calls to fit its schema."""
    function = tool.fields["function"].struct_value if "function" in tool.fields else struct_pb2.Struct()
    return "strict" in function.fields and function.fields["strict"].bool_value


def check_tools(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    """Every violation of a chat's tool_choice and, where calls are parsed, of its tools."""
    chat = request.chat
    if chat.tool_choice not in pb.ToolChoice.values():
        return [("chat.tool_choice", f"unknown value {chat.tool_choice}")]
    if chat.named_tool and chat.tool_choice != pb.TOOL_CHOICE_NAMED:
        return [("chat.named_tool", "needs the tool_choice TOOL_CHOICE_NAMED")]
    if not parses_calls(request):
        return []
    if not chat.tools:
        return [("chat.tools", "must not be empty: its tool_choice lets the model call them")]
    return _check_definitions(chat) or _check_forced(request)


def no_parser(model: str) -> tuple[str, str]:
    """The violation of whoever wants calls parsed that a model writes for which there is no parser."""
    what = f"model {model!r} has no tool parser (tool_parser in its spec), so its calls cannot be parsed"
    return "chat.tools", f"{what}; with tool_choice none they stay text"


def _check_forced(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    chat = request.chat
    found: list[tuple[str, str]] = []
    names = [tool_name(tool) for tool in chat.tools]
    if chat.tool_choice == pb.TOOL_CHOICE_NAMED and chat.named_tool not in names:
        what = f"{reprlib.repr(chat.named_tool)} is none of the tools: {', '.join(names)}"
        found.append(("chat.named_tool", what[:1024]))
    if chat.tool_choice in _FORCED and request.sampling.HasField("structured_output"):
        what = "cannot be combined with a tool_choice that forces a call, whose arguments the tool constrains"
        found.append(("sampling.structured_output", what))
    return found


def _check_definitions(chat: pb.ChatInput) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    names: set[str] = set()
    for index, tool in enumerate(chat.tools):
        path = f"chat.tools[{index}]"
        if what := _check_definition(tool):
            found.append((path, what))
        elif (name := tool_name(tool)) in names:
            found.append((f"{path}.function.name", f"{name!r} is the name of another tool, too"))
        else:
            names.add(name)
        if len(found) == _MOST_TOLD:
            break
    return found


def _check_definition(tool: struct_pb2.Struct) -> str:
    """What is wrong with one tool; empty: nothing."""
    kind = tool.fields["type"].string_value if "type" in tool.fields else ""
    if kind != "function" or "function" not in tool.fields:
        return f"must be {_FORM}"
    name = tool_name(tool)
    if not name:
        return f"must be {_FORM}: it has no name"
    if len(name) > MAX_TOOL_NAME:
        return f"its name must have at most {MAX_TOOL_NAME} characters, not {len(name)}"
    function = tool.fields["function"].struct_value
    if "parameters" in function.fields:
        parameters = function.fields["parameters"].WhichOneof("kind")
        if parameters not in ("struct_value", "null_value"):
            return f"must be {_FORM}: its parameters are no JSON schema"
    return ""
