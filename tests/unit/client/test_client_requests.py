"""From keyword arguments to the request on the wire."""

from __future__ import annotations

import json

import pytest

from chiron.client import (
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Message,
    OneOf,
    Regex,
    RequestClass,
    Slo,
)
from chiron.client.request import build_request, check_metadata, estimate_prompt_tokens, route_request
from chiron.requests.validation import check_generate
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2


def test_what_is_left_out_stays_unset():
    request = build_request(model="toy", prompt="Hi", max_tokens=None, temperature=None, slo=None)
    assert not request.sampling.ListFields()
    assert not request.HasField("slo")
    assert request.request_class == types_pb2.REQUEST_CLASS_UNSPECIFIED


def test_every_sampling_argument_lands_in_its_field():
    given = {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.125,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "seed": -3,
        "n": 2,
        "include_stop": True,
        "ignore_eos": True,
        "logprobs": 0,
        "keep_special_tokens": True,
    }
    sampling = build_request(
        model="toy", prompt="Hi", stop=["a", "b"], stop_token_ids=[7], logit_bias={5: -100.0}, **given
    ).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["a", "b"], [7])
    assert dict(sampling.logit_bias) == {5: -100.0}


def test_zero_is_not_the_same_as_left_out():
    sampling = build_request(model="toy", prompt="Hi", temperature=0, seed=0, logprobs=0).sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("seed")
    assert sampling.HasField("logprobs")


def test_one_stop_string_needs_no_list():
    assert list(build_request(model="toy", prompt="Hi", stop="END").sampling.stop) == ["END"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (JsonSchema({"type": "object"}), "json_schema"),
        (JsonSchema('{"type": "object"}'), "json_schema"),
        (JsonObject(), "json_object"),
        (Regex("a+"), "regex"),
        (Grammar("root ::= 'a'"), "grammar"),
        (OneOf(["yes", "no"]), "choice"),
    ],
)
def test_structured_output_takes_each_form(value, kind):
    request = build_request(model="toy", prompt="Hi", structured_output=value)
    output = request.sampling.structured_output
    assert output.WhichOneof("constraint") == kind
    assert check_generate(request) == []
    if kind == "json_schema":
        assert json.loads(output.json_schema) == {"type": "object"}


def test_class_slo_and_order_travel():
    request = build_request(
        model="toy", prompt="Hi", request_class="batch", slo=Slo(deadline_s=3600), priority=-5, adapter="poet"
    )
    assert request.request_class == types_pb2.REQUEST_CLASS_BATCH
    assert (request.slo.deadline_s, request.slo.HasField("ttft_ms")) == (3600, False)
    assert (request.priority, request.adapter) == (-5, "poet")
    same = build_request(model="toy", prompt="Hi", request_class=RequestClass.BATCH)
    assert same.request_class == request.request_class


def test_request_ids_are_new_unless_given():
    first, second = (build_request(model="toy", prompt="Hi") for _ in range(2))
    assert first.request_id != second.request_id
    assert build_request(model="toy", prompt="Hi", request_id="mine").request_id == "mine"
    assert check_generate(first) == []


def test_an_empty_prompt_travels_so_that_the_server_names_it():
    assert check_generate(build_request(model="toy", prompt="")) == [("prompt", "must not be empty")]
    assert check_generate(build_request(model="toy", prompt_token_ids=[]))[0][0] == "prompt_token_ids"
    assert check_generate(build_request(model="toy", messages=[]))[0][0] == "chat.messages"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "input"),
        ({"prompt": "Hi", "messages": []}, "input"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "Hi", "model": ""}, "model"),
        ({"prompt": "Hi", "max_tokens": -1}, "sampling.max_tokens"),
        ({"prompt": "Hi", "max_tokens": "many"}, "sampling.max_tokens"),
        ({"prompt": "Hi", "seed": 2**63}, "sampling.seed"),
        ({"prompt": "Hi", "stop": [1]}, "sampling.stop"),
        ({"prompt": "Hi", "logit_bias": {-1: 1.0}}, "sampling.logit_bias"),
        ({"prompt": "Hi", "structured_output": "json"}, "sampling.structured_output"),
        ({"prompt": "Hi", "slo": Slo(ttft_ms="soon")}, "slo.ttft_ms"),
        ({"prompt": "Hi", "request_class": "urgent"}, "request_class"),
        ({"prompt": "Hi", "priority": 2**40}, "priority"),
        ({"prompt": "Hi", "tools": [{"type": "function"}]}, "tools"),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        (
            {"messages": [Message("user", "Hi"), {"role": "user", "content": "x", "colour": "red"}]},
            "messages[1]",
        ),
        ({"messages": [Message("user", 7)]}, "messages[0].content"),
        ({"messages": [Message("user", "Hi")], "tools": [{"x": object()}]}, "tools[0]"),
    ],
)
def test_a_value_that_does_not_fit_is_named(options, field):
    with pytest.raises(InvalidRequest) as caught:
        build_request(**{"model": "toy", **options})
    assert [each.field for each in caught.value.violations] == [field]
    assert caught.value.message.startswith(f"{field}: ")
    assert caught.value.reason == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 5}, "prompt: must be a str, not 5 (int)"),
        ({"prompt": "x", "model": 5}, "model: must be a str, not 5 (int)"),
        ({"prompt": "x", "adapter": ["a"]}, "adapter: must be a str, not ['a'] (list)"),
        (
            {"prompt": "x", "max_tokens": 2.5},
            "sampling.max_tokens: must be an int from 0 to 4294967295, not 2.5 (float)",
        ),
        (
            {"prompt": "x", "priority": 2**31},
            "priority: must be an int from -2147483648 to 2147483647, not 2147483648 (int)",
        ),
        ({"prompt": "x", "temperature": "hot"}, "sampling.temperature: must be a number, not 'hot' (str)"),
        ({"prompt": "x", "ignore_eos": "yes"}, "sampling.ignore_eos: must be a bool, not 'yes' (str)"),
        ({"prompt": "x", "slo": 5}, "slo: must be a Slo, not 5 (int)"),
        ({"messages": 5}, "messages: must be a sequence, not 5 (int)"),
        ({"messages": [Message("user", "Hi")], "tools": 5}, "tools: must be a sequence, not 5 (int)"),
        ({"prompt_token_ids": 5}, "prompt_token_ids: must be a sequence, not 5 (int)"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_the_right_one(options, message):
    with pytest.raises(InvalidRequest) as caught:
        build_request(**{"model": "toy", **options})
    assert caught.value.message == message


def test_an_argument_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="unknown argument: max_token"):
        build_request(model="toy", prompt="Hi", max_token=5)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"prompt_token_ids": [5, 6, 7]}, 3),
        ({"prompt": "x"}, 1),
        ({"prompt": "x" * 8}, 2),
        ({"prompt": "x" * 9}, 3),
        ({"prompt": "é" * 8}, 4),
        ({"messages": [Message("user", "x" * 6), Message("user", "x" * 6)]}, 3 + 2 * 4),
    ],
)
def test_the_router_learns_the_prompts_length_exactly_for_ids_and_by_bytes_for_text(options, tokens):
    request = build_request(model="toy", **options)
    assert estimate_prompt_tokens(request) == tokens
    assert route_request(request).prompt_tokens == tokens


def test_none_is_as_good_as_no_tool_calls():
    request = build_request(model="toy", messages=[{"role": "user", "content": "x", "tool_calls": None}])
    assert not request.chat.messages[0].tool_calls


TIME = {"type": "function", "function": {"name": "time"}}


@pytest.mark.parametrize(
    ("choice", "wire", "named"),
    [
        (None, pb.TOOL_CHOICE_UNSPECIFIED, ""),
        ("none", pb.TOOL_CHOICE_NONE, ""),
        ("auto", pb.TOOL_CHOICE_AUTO, ""),
        ("required", pb.TOOL_CHOICE_REQUIRED, ""),
        (TIME, pb.TOOL_CHOICE_NAMED, "time"),
    ],
)
def test_a_choice_of_tools_is_written_as_openai_does(choice, wire, named):
    request = build_request(
        model="toy",
        messages=[Message("user", "x")],
        tools=[TIME],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    assert (request.chat.tool_choice, request.chat.named_tool) == (wire, named)
    assert request.chat.HasField("parallel_tool_calls")
    assert not request.chat.parallel_tool_calls
    assert check_generate(request) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"function": "time"}}, "tool_choice"),
        ({"tool_choice": {"function": {"name": 7}}}, "named_tool"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_a_bad_choice_of_tools_is_refused_by_name(options, field):
    with pytest.raises(InvalidRequest, match=f"^{field}: must be"):
        build_request(model="toy", messages=[Message("user", "x")], tools=[TIME], **options)


def test_a_choice_of_tools_needs_a_chat():
    with pytest.raises(InvalidRequest, match="tool_choice: needs messages"):
        build_request(model="toy", prompt="x", tool_choice="auto")


def test_all_of_a_chat_that_a_template_may_render_counts_towards_its_length():
    plain = estimate_prompt_tokens(build_request(model="toy", messages=[Message("user", "x")]))
    long = "y" * 4000
    for more in (
        {"tools": [{"type": "function", "function": {"description": long}}]},
        {"template_kwargs": {"document": long}},
        {"messages": [Message("user", "x", name=long)]},
        {"messages": [Message("assistant", "x", tool_calls=({"arguments": long},))]},
        {"messages": [Message("user", "")] * 250},
    ):
        request = build_request(**{"model": "toy", "messages": [Message("user", "x")], **more})
        assert 990 <= estimate_prompt_tokens(request) - plain < 1050, more


@pytest.mark.parametrize(
    "metadata",
    [
        *({"grpc-timeout": "1S"}, {"blob-bin": "x"}, {"sp ace": "x"}, {"": "x"}, {"x": "é"}, {"x": "a\nb"}),
        *({"x": 7}, {7: "x"}, [("x", "y")]),
    ],
)
def test_metadata_that_cannot_travel_is_refused(metadata):
    with pytest.raises(InvalidRequest, match="metadata: "):
        check_metadata(metadata)


def test_the_route_call_names_the_prompts_beginnings_and_holds_nothing_else_of_it() -> None:
    request = build_request(model="m", prompt="The cat sat on the mat. " * 50)
    route = route_request(request)
    # 1,200 bytes are four full blocks of 256.
    assert [len(each) for each in route.prefix_hashes] == [8] * 4
    assert b"cat" not in route.SerializeToString()
    longer = build_request(model="m", prompt="The cat sat on the mat. " * 5000)
    assert route_request(longer).prefix_hashes[:4] == route.prefix_hashes
    assert len(route_request(longer).prefix_hashes) == 64
    assert not route_request(build_request(model="m", prompt="The cat.")).prefix_hashes
