"""What makes tools and the choice of them invalid."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from chiron.requests.tools import constrains_calls, parses_calls
from chiron.requests.validation import check_generate
from chiron.v1 import inference_pb2 as pb

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time"}}


def ask(choice: pb.ToolChoice.ValueType, *tools: dict[str, Any], **more: Any) -> pb.GenerateRequest:
    sampling = more.pop("sampling", None)
    chat = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="x")], tool_choice=choice, **more)
    for tool in tools:
        json_format.ParseDict(tool, chat.tools.add())
    return pb.GenerateRequest(model="m", chat=chat, sampling=sampling)


@pytest.mark.parametrize("choice", [pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED])
def test_a_choice_of_well_formed_tools_is_valid_and_has_calls_parsed(choice) -> None:
    named = "time" if choice == pb.TOOL_CHOICE_NAMED else ""
    request = ask(choice, WEATHER, TIME, named_tool=named)
    assert check_generate(request) == []
    assert parses_calls(request)
    assert constrains_calls(request) is (choice != pb.TOOL_CHOICE_AUTO)


@pytest.mark.parametrize("choice", [pb.TOOL_CHOICE_UNSPECIFIED, pb.TOOL_CHOICE_NONE])
def test_tools_of_any_form_go_to_the_template_where_no_call_is_parsed(choice) -> None:
    request = ask(choice, {"name": "bare"}, {"name": "bare"}, parallel_tool_calls=False)
    assert check_generate(request) == []
    assert not parses_calls(request)
    assert not constrains_calls(request)
    assert check_generate(ask(choice)) == []


def test_at_most_one_call_may_constrain_the_output() -> None:
    assert constrains_calls(ask(pb.TOOL_CHOICE_AUTO, TIME, parallel_tool_calls=False))
    assert not constrains_calls(ask(pb.TOOL_CHOICE_AUTO, TIME, parallel_tool_calls=True))


@pytest.mark.parametrize(("strict", "constrains"), [(True, True), (False, False), (None, False)])
def test_a_strict_tool_may_constrain_the_output(strict: bool | None, constrains: bool) -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": strict}}
    assert constrains_calls(ask(pb.TOOL_CHOICE_AUTO, TIME, tool)) is constrains
    assert check_generate(ask(pb.TOOL_CHOICE_AUTO, TIME, tool)) == []


OBJECT = pb.SamplingParams(structured_output=pb.StructuredOutput(json_object=True))
AUTO, REQUIRED, NAMED = pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": fields}


@pytest.mark.parametrize(
    ("bad", "field", "text"),
    [
        (ask(99), "chat.tool_choice", "99"),
        (ask(AUTO), "chat.tools", "must not be empty"),
        (ask(AUTO, TIME, named_tool="time"), "chat.named_tool", "TOOL_CHOICE_NAMED"),
        (ask(pb.TOOL_CHOICE_NONE, named_tool="time"), "chat.named_tool", "TOOL_CHOICE_NAMED"),
        (ask(NAMED, WEATHER, TIME), "chat.named_tool", "weather, time"),
        (ask(NAMED, WEATHER, named_tool="time"), "chat.named_tool", "'time'"),
        (ask(AUTO, TIME, {"type": "retrieval"}), "chat.tools[1]", '"type": "function"'),
        (ask(AUTO, {"type": "function"}), "chat.tools[0]", '"function"'),
        (ask(AUTO, {"type": "function", "function": "time"}), "chat.tools[0]", "no name"),
        (ask(AUTO, function(name=7)), "chat.tools[0]", "no name"),
        (ask(AUTO, function(name="x" * 257)), "chat.tools[0]", "257"),
        (ask(AUTO, function(name="f", parameters=[])), "chat.tools[0]", "parameters"),
        (ask(AUTO, WEATHER, TIME, TIME), "chat.tools[2].function.name", "'time'"),
        (ask(REQUIRED, TIME, sampling=OBJECT), "sampling.structured_output", "forces"),
        (ask(NAMED, TIME, named_tool="time", sampling=OBJECT), "sampling.structured_output", "forces"),
    ],
)
def test_a_bad_choice_of_tools_is_named(bad: pb.GenerateRequest, field: str, text: str) -> None:
    ((found, what),) = check_generate(bad)
    assert found == field
    assert text in what


def test_a_structured_output_may_stand_beside_calls_that_are_not_forced() -> None:
    assert check_generate(ask(AUTO, TIME, sampling=OBJECT)) == []


def test_of_many_bad_tools_the_first_are_told() -> None:
    assert len(check_generate(ask(AUTO, *[{"x": 1}] * 100))) == 16
