"""What a chat completion's body comes to, and what is said of one that does not fit."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest
from google.protobuf import json_format
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from chiron.requests.validation import check_generate
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.http.chat.request import ACCEPTED, REFUSED, ChatRequest, read_chat, to_generate
from services.router.http.errors import HttpError
from services.router.http.promises import Promises, promised
from services.router.http.reading import parsed

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time"}}


def generate(**fields: Any) -> pb.GenerateRequest:
    body = json.dumps({"model": "m", "messages": HELLO} | fields).encode()
    return to_generate(read_chat(parsed(body)), Promises())


def refused(**fields: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        generate(**fields)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_every_parameter_of_the_official_client_is_served_accepted_or_refused() -> None:
    official = set(get_type_hints(CompletionCreateParamsStreaming))
    official |= set(get_type_hints(CompletionCreateParamsNonStreaming))
    served = {field.alias or name for name, field in ChatRequest.model_fields.items()}
    assert official <= served | ACCEPTED | REFUSED.keys()
    assert not served & (ACCEPTED | REFUSED.keys())
    assert not ACCEPTED & REFUSED.keys()


def test_messages_keep_their_roles_names_and_calls() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
    chat = generate(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "hello", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        ]
    ).chat
    assert [(each.role, each.content) for each in chat.messages] == [
        ("developer", "be brief"),
        ("user", "hello"),
        ("assistant", ""),
        ("tool", "sunny"),
    ]
    assert chat.messages[1].name == "ann"
    assert json_format.MessageToDict(chat.messages[2].tool_calls[0]) == call
    assert chat.messages[3].tool_call_id == "c1"


def test_an_adapter_is_named_after_its_model() -> None:
    message = generate(model="base:tuned")
    assert (message.model, message.adapter) == ("base", "tuned")
    assert (generate().model, generate().adapter) == ("m", "")


def test_text_parts_are_lines_of_one_message() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    [message] = generate(messages=[{"role": "user", "content": parts}]).chat.messages
    assert message.content == "one\ntwo"


def test_sampling_parameters_arrive_under_their_own_names() -> None:
    sampling = generate(
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        seed=-7,
        n=3,
        stop=["a", "b"],
        max_completion_tokens=9,
        min_tokens=2,
        top_k=4,
        min_p=0.125,
        ignore_eos=True,
        stop_token_ids=[5],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logit_bias={"11": -1.5},
        logprobs=True,
        top_logprobs=2,
    ).sampling
    assert sampling == pb.SamplingParams(
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        seed=-7,
        n=3,
        stop=["a", "b"],
        max_tokens=9,
        min_tokens=2,
        top_k=4,
        min_p=0.125,
        ignore_eos=True,
        stop_token_ids=[5],
        include_stop=True,
        keep_special_tokens=True,
        logit_bias={11: -1.5},
        logprobs=2,
    )


def test_what_is_not_said_is_left_open() -> None:
    nulls = dict.fromkeys(
        ("temperature", "n", "stop", "max_tokens", "seed", "logprobs", "tools", "stream_options", "user")
    )
    assert generate(**nulls) == generate()
    assert generate().sampling == pb.SamplingParams()


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
    ],
)
def test_both_names_of_the_most_tokens_are_served(fields: dict[str, int], max_tokens: int) -> None:
    assert generate(**fields).sampling.max_tokens == max_tokens


def test_one_stop_string_is_a_list_of_one() -> None:
    assert list(generate(stop="end").sampling.stop) == ["end"]


def test_log_probabilities_without_alternatives_are_those_of_the_sampled_token() -> None:
    sampling = generate(logprobs=True).sampling
    assert sampling.HasField("logprobs")
    assert sampling.logprobs == 0


@pytest.mark.parametrize("top_k", [-1, 0])
def test_vllms_words_for_all_tokens_set_no_limit(top_k: int) -> None:
    assert not generate(top_k=top_k).sampling.HasField("top_k")


def test_equal_choices_are_generated_once() -> None:
    message = generate(temperature=0, n=4)
    assert message.sampling.n == 1
    assert check_generate(message) == []
    request = read_chat({"model": "m", "messages": HELLO, "temperature": 0, "n": 4})
    assert request.copies == 4


SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer", "minimum": 1}}}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            "json_schema",
            SCHEMA,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "grammar", "root ::= x"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
        ({"structured_outputs": {"json_object": True}}, "json_object", True),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": "b"}}, "regex", "b"),
    ],
)
def test_formats_constrain_the_output(fields: dict[str, Any], kind: str, value: object) -> None:
    output = generate(**fields).sampling.structured_output
    assert output.WhichOneof("constraint") == kind
    got = getattr(output, kind)
    if kind == "json_schema":
        got = json.loads(got)
    elif kind == "choice":
        got = list(got.values)
    assert got == value


def test_text_is_no_constraint() -> None:
    assert not generate(response_format={"type": "text"}).sampling.HasField("structured_output")


@pytest.mark.parametrize(
    ("choice", "kind", "name", "tools"),
    [
        (None, pb.TOOL_CHOICE_AUTO, "", ["weather", "time"]),
        ("auto", pb.TOOL_CHOICE_AUTO, "", ["weather", "time"]),
        ("none", pb.TOOL_CHOICE_NONE, "", ["weather", "time"]),
        ("required", pb.TOOL_CHOICE_REQUIRED, "", ["weather", "time"]),
        (
            {"type": "function", "function": {"name": "time"}},
            pb.TOOL_CHOICE_NAMED,
            "time",
            ["weather", "time"],
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "time"}}],
                },
            },
            pb.TOOL_CHOICE_REQUIRED,
            "",
            ["time"],
        ),
    ],
)
def test_tools_and_who_decides(choice: Any, kind: int, name: str, tools: list[str]) -> None:
    message = generate(tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    chat = message.chat
    assert (chat.tool_choice, chat.named_tool) == (kind, name)
    assert [json_format.MessageToDict(tool)["function"]["name"] for tool in chat.tools] == tools
    assert chat.HasField("parallel_tool_calls") == (kind != pb.TOOL_CHOICE_NONE)
    assert not chat.parallel_tool_calls
    assert check_generate(message) == []


def test_tools_keep_their_schemas() -> None:
    [tool] = generate(tools=[WEATHER]).chat.tools
    assert json_format.MessageToDict(tool) == WEATHER


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": "none"}, {"parallel_tool_calls": True}])
def test_without_tools_nothing_is_said_of_calls(fields: dict[str, Any]) -> None:
    assert generate(**fields) == generate()


def test_the_template_gets_its_variables_and_the_effort() -> None:
    chat = generate(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}).chat
    assert json_format.MessageToDict(chat.template_kwargs) == {
        "reasoning_effort": "low",
        "enable_thinking": False,
    }


def test_what_is_harmless_has_no_effect() -> None:
    assert generate(**dict.fromkeys(ACCEPTED, "anything")) == generate()


def test_what_asks_for_nothing_is_accepted_where_the_field_is_not_served() -> None:
    for name, (neutral, _) in REFUSED.items():
        for value in neutral:
            assert generate(**{name: value}) == generate()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_served_is_refused_by_name_with_a_reason(name: str) -> None:
    error = refused(**{name: {"x": 1}})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert error.message.startswith(f"{name}: ")


PART = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": "alien", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [PART]}]}, "messages[0].content[0].type", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y", "unknown_parameter"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**32}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": ["a", 5]}, "stop[1]", "invalid_type"),
        ({"stream_options": {"include_all": True}}, "stream_options.include_all", "unknown_parameter"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "invalid_value",
        ),
        ({"service_tier": "gold"}, "service_tier", "invalid_value"),
        ({"request_class": "slow"}, "request_class", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"tools": []}, "tools", "invalid_value"),
        ({"tools": [], "tool_choice": "auto"}, "tools", "invalid_value"),
        ({"tools": [], "tool_choice": "none"}, "tools", "invalid_value"),
        ({"temperature": 1e308}, "temperature", "invalid_value"),
        ({"repetition_penalty": 4e38}, "repetition_penalty", "invalid_value"),
        ({"tools": [TIME], "tool_choice": "perhaps"}, "tool_choice", "invalid_value"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "tool_choice",
            "invalid_value",
        ),
        ({"tools": [TIME], "tool_choice": {"type": "custom"}}, "tool_choice", "invalid_value"),
        ({"chat_template_kwargs": {"x": 10**400}}, "chat_template_kwargs", "invalid_value"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(**fields)
    assert (error.param, error.code) == (param, code)
    assert param.rpartition(".")[2] in error.message


def test_of_very_many_mistakes_none_is_picked_out() -> None:
    error = refused(logit_bias={str(token): "high" for token in range(1001)})
    assert (error.param, error.code) == (None, "invalid_value")
    assert "1001 places" in error.message
    assert refused(logit_bias={"7": "high"}).param == "logit_bias.7"


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"model": NaN}', b'"x"', b"[]", b'{"a": "\\ud800"}', b""])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parsed(body)
    assert caught.value.status == 400
    assert "JSON body" in caught.value.message


def test_deep_json_is_refused_where_the_wire_has_no_place_for_it() -> None:
    def nested(levels: int) -> Any:
        return {"a": nested(levels - 1)} if levels else 1

    deepest = generate(chat_template_kwargs=nested(28))
    assert pb.GenerateRequest.FromString(deepest.SerializeToString()) == deepest
    tools = generate(
        tools=[{"type": "function", "function": {"name": "x", "parameters": nested(26)}}]
    ).SerializeToString()
    assert pb.GenerateRequest.FromString(tools).chat.tools
    assert refused(chat_template_kwargs=nested(29)).param == "chat_template_kwargs"


def test_promises_are_written_into_the_request() -> None:
    request = read_chat(
        {"model": "m", "messages": HELLO, "slo": {"ttft_ms": 250}, "priority": -3, "request_class": "batch"}
    )
    message = to_generate(request, promised(request, {}))
    assert (message.request_class, message.priority) == (types_pb2.REQUEST_CLASS_BATCH, -3)
    assert message.slo == types_pb2.Slo(ttft_ms=250)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "Invalid value for 'messages': must not be empty."),
        ({"tools": []}, "Invalid value for 'tools': must not be empty."),
        ({"model": ""}, "Invalid value for 'model': must not be empty."),
        ({"messages": HELLO * 10_001}, "Invalid value for 'messages': must have at most 10000 entries."),
        (
            {"tools": [{"type": "function", "function": {"name": "x" * 257}}]},
            "Invalid value for 'tools[0].function.name': must have at most 256 characters.",
        ),
    ],
)
def test_a_wrong_length_is_told_in_this_api_s_words(fields: dict[str, Any], message: str) -> None:
    assert refused(**fields).message == message


def test_a_number_beyond_what_the_wire_holds_is_told_as_it_was_written() -> None:
    assert refused(temperature=1e308).message.endswith("not 1e+308.")
    assert generate(temperature=100.0).sampling.temperature == 100.0
