"""What makes a request invalid, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2

from chiron.requests.priority import engine_priority
from chiron.requests.validation import check_generate, check_route
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2


def request(**changes: Any) -> pb.GenerateRequest:
    fields: dict[str, Any] = {"model": "m", "prompt": "hello"} | changes
    return pb.GenerateRequest(**{key: value for key, value in fields.items() if value is not None})


def sampling(**fields: Any) -> pb.GenerateRequest:
    return request(sampling=pb.SamplingParams(**fields))


def test_a_plain_request_is_valid() -> None:
    assert check_generate(request()) == []


def test_every_field_at_its_bounds_is_valid() -> None:
    full = request(
        request_id="a-B.9_:" + "x" * 121,
        priority=-1000,
        sampling=pb.SamplingParams(
            max_tokens=1, min_tokens=1, temperature=0.5, top_p=1, top_k=1, min_p=1, presence_penalty=-2,
            frequency_penalty=2, repetition_penalty=0.1, seed=-1, n=16, stop=["x"] * 16, logprobs=20,
            logit_bias={1: -100}, structured_output=pb.StructuredOutput(regex="a+"),
        ),
        slo=types_pb2.Slo(ttft_ms=1000, itl_ms=0.001, deadline_s=1),
    )  # fmt: skip
    assert check_generate(full) == []


@pytest.mark.parametrize(
    ("bad", "field", "text"),
    [
        (request(prompt=None), "input", "prompt_token_ids"),
        (request(prompt=""), "prompt", "empty"),
        (request(prompt=None, prompt_token_ids=pb.TokenIds()), "prompt_token_ids", "empty"),
        (request(prompt=None, chat=pb.ChatInput()), "chat.messages", "empty"),
        (
            request(prompt=None, chat=pb.ChatInput(messages=[pb.ChatMessage(role="robot")])),
            "chat.messages[0].role",
            "'robot'",
        ),
        (request(model=""), "model", "required"),
        (request(request_id="a b"), "request_id", "characters"),
        (request(request_id="x" * 129), "request_id", "128"),
        (request(request_class=7), "request_class", "7"),
        (request(priority=1001), "priority", "1001"),
        (request(elapsed_ms=-1), "elapsed_ms", "-1"),
        (request(elapsed_ms=float("nan")), "elapsed_ms", "nan"),
        (sampling(max_tokens=0), "sampling.max_tokens", ">= 1"),
        (sampling(max_tokens=2, min_tokens=3), "sampling.min_tokens", "max_tokens (2)"),
        (sampling(temperature=-0.1), "sampling.temperature", "-0.1"),
        (sampling(temperature=float("inf")), "sampling.temperature", "inf"),
        (sampling(top_p=0), "sampling.top_p", "(0, 1]"),
        (sampling(top_p=1.5), "sampling.top_p", "1.5"),
        (sampling(min_p=-1), "sampling.min_p", "[0, 1]"),
        (sampling(presence_penalty=3), "sampling.presence_penalty", "[-2, 2]"),
        (sampling(frequency_penalty=-3), "sampling.frequency_penalty", "-3"),
        (sampling(repetition_penalty=0), "sampling.repetition_penalty", "> 0"),
        (sampling(n=17), "sampling.n", "16"),
        (sampling(n=2, temperature=0), "sampling.n", "temperature is 0"),
        (sampling(stop=["a", ""]), "sampling.stop", "empty"),
        (sampling(stop=["a"] * 17), "sampling.stop", "16"),
        (sampling(logprobs=21), "sampling.logprobs", "20"),
        (sampling(logit_bias={1: 101}), "sampling.logit_bias", "100"),
        (sampling(structured_output=pb.StructuredOutput()), "sampling.structured_output", "required"),
        (
            sampling(structured_output=pb.StructuredOutput(choice=pb.StringList())),
            "sampling.structured_output.choice",
            "non-empty",
        ),
        (
            sampling(structured_output=pb.StructuredOutput(json_schema="")),
            "sampling.structured_output.json_schema",
            "empty",
        ),
        (request(model="m" * 257), "model", "256 characters, not 257"),
        (request(adapter="a" * 257), "adapter", "256 characters, not 257"),
        (sampling(stop=["s" * 1024, "s" * 1025]), "sampling.stop", "1024 characters, not 1025"),
        (sampling(stop_token_ids=[1] * 10_001), "sampling.stop_token_ids", "10000 entries, not 10001"),
        (sampling(logit_bias=dict.fromkeys(range(10_001), 1.0)), "sampling.logit_bias", "not 10001"),
        (
            sampling(structured_output=pb.StructuredOutput(regex="a" * 131_072)),
            "sampling.structured_output",
            "131072 bytes",
        ),
        (
            request(prompt=None, chat=pb.ChatInput(messages=[pb.ChatMessage(role="user")] * 10_001)),
            "chat.messages",
            "10000 entries, not 10001",
        ),
        (
            request(
                prompt=None,
                chat=pb.ChatInput(messages=[pb.ChatMessage(role="user")], tools=[struct_pb2.Struct()] * 1025),
            ),
            "chat.tools",
            "1024 entries, not 1025",
        ),
        (request(slo=types_pb2.Slo(ttft_ms=0)), "slo.ttft_ms", "> 0"),
        (request(slo=types_pb2.Slo(itl_ms=-5)), "slo.itl_ms", "-5"),
        (request(slo=types_pb2.Slo(deadline_s=float("inf"))), "slo.deadline_s", "inf"),
        (request(slo=types_pb2.Slo(ttft_ms=100, deadline_s=0.01)), "slo.deadline_s", "10 ms is before"),
    ],
)
def test_one_bad_field_is_the_one_violation(bad: pb.GenerateRequest, field: str, text: str) -> None:
    found = check_generate(bad)
    assert [name for name, _ in found] == [field]
    assert text in found[0][1]


def test_of_a_pile_of_bad_messages_a_few_are_told_and_none_at_length() -> None:
    bad = request(prompt=None, chat=pb.ChatInput(messages=[pb.ChatMessage(role="r" * 10_000)] * 10_000))
    found = check_generate(bad)
    assert [field for field, _ in found] == [f"chat.messages[{index}].role" for index in range(16)]
    assert max(len(what) for _, what in found) < 200


def test_several_bad_fields_are_all_named() -> None:
    bad = request(model="", sampling=pb.SamplingParams(top_p=2), slo=types_pb2.Slo(ttft_ms=-1))
    assert [field for field, _ in check_generate(bad)] == ["model", "sampling.top_p", "slo.ttft_ms"]


def test_a_route_request_follows_the_same_rules() -> None:
    assert check_route(pb.RouteRequest(model="m")) == []
    bad = pb.RouteRequest(priority=-2000, slo=types_pb2.Slo(itl_ms=0))
    assert [field for field, _ in check_route(bad)] == ["model", "priority", "slo.itl_ms"]


@pytest.mark.parametrize(
    ("field", "most", "entry"), [("excluded_instance_ids", 1024, "i"), ("prefix_hashes", 64, b"8 bytes.")]
)
def test_the_lists_of_a_route_request_are_bounded(field: str, most: int, entry: str | bytes) -> None:
    route = pb.RouteRequest(model="m")
    getattr(route, field).extend([entry] * most)
    assert check_route(route) == []
    getattr(route, field).append(entry)
    assert [field for field, _ in check_route(route)] == [field]


def test_the_least_urgent_interactive_request_goes_before_the_most_urgent_batch_request() -> None:
    interactive, batch = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
    assert engine_priority(interactive, 1000) < engine_priority(batch, -1000)
    assert engine_priority(interactive, -1) < engine_priority(interactive, 0)
