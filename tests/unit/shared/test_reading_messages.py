"""What arrives as bytes is counted before it is decoded."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from chiron.rpc.errors import ChironError, Reason
from chiron.rpc.reading import MOST_FIELDS, count_fields, read
from chiron.v1 import inference_pb2 as pb

REQUEST = pb.GenerateRequest


def tool(depth: int) -> struct_pb2.Struct:
    value: dict[str, object] = {"x": 1.0}
    for _ in range(depth):
        value = {"x": value}
    made = struct_pb2.Struct()
    made.update(value)
    return made


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.GenerateRequest(), 0),
        (pb.GenerateRequest(model="m", prompt="x" * 100_000), 2),
        (pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[7] * 100_000)), 2),
        (pb.GenerateRequest(attempt=300, elapsed_ms=1.5, priority=-1), 3),
        (pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(role="user", content="x")] * 5)), 16),
        (pb.GenerateRequest(sampling=pb.SamplingParams(logit_bias={1: 0.5, 2: 0.5}, temperature=1.0)), 8),
        # chat, tool, entry, its key, its value, the number.
        (pb.GenerateRequest(chat=pb.ChatInput(tools=[tool(0)])), 6),
    ],
)
def test_every_field_counts_once(request_: pb.GenerateRequest, fields: int) -> None:
    assert count_fields(REQUEST, request_.SerializeToString(), MOST_FIELDS) == fields


def test_counting_ends_where_it_is_too_much() -> None:
    wire = pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage()] * 1000)).SerializeToString()
    assert count_fields(REQUEST, wire, 1001) == 1001
    assert count_fields(REQUEST, wire, 1000) == 1001
    assert count_fields(REQUEST, wire, 10) == 11


def test_a_large_message_of_few_parts_is_read() -> None:
    messages = [pb.ChatMessage(role="user", content="word " * 100)] * 2000
    request = pb.GenerateRequest(model="m", chat=pb.ChatInput(messages=messages, tools=[tool(20)]))
    assert read(pb.GenerateRequest, request.SerializeToString()) == request


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage()] * MOST_FIELDS)),
        pb.GenerateRequest(chat=pb.ChatInput(tools=[struct_pb2.Struct()] * MOST_FIELDS)),
        pb.GenerateRequest(sampling=pb.SamplingParams(stop=[""] * MOST_FIELDS)),
    ],
    ids=["messages", "tools", "stop"],
)
def test_a_message_of_too_many_parts_is_not_decoded(request_: pb.GenerateRequest) -> None:
    wire = request_.SerializeToString()
    for cut in (wire, wire[:-1]):
        with pytest.raises(ChironError, match=f"more than {MOST_FIELDS} fields") as caught:
            read(pb.GenerateRequest, cut)
        assert caught.value.reason is Reason.INVALID_ARGUMENT


@given(st.binary(max_size=200))
def test_whatever_arrives_is_counted_or_refused(wire: bytes) -> None:
    assert 0 <= count_fields(REQUEST, wire, 50) <= 51
    padding = pb.GenerateRequest(prompt="x" * 70_000).SerializeToString()
    try:
        expected = pb.GenerateRequest.FromString(padding + wire)
    except Exception:
        with pytest.raises(ChironError):
            read(pb.GenerateRequest, padding + wire)
    else:
        assert read(pb.GenerateRequest, padding + wire).SerializeToString() == expected.SerializeToString()


def test_a_message_nested_without_end_is_refused() -> None:
    deep = b""
    for _ in range(30_000):
        # A list, whose first value is a list.
        deep = b"\x0a" + _length(deep) + deep
        deep = b"\x32" + _length(deep) + deep
    wire = pb.GenerateRequest(prompt="x" * 70_000).SerializeToString()
    for tag in (b"\x12", b"\x0a", b"\x12", b"\x2a"):
        deep = tag + _length(deep) + deep
    with pytest.raises(ChironError):
        read(pb.GenerateRequest, wire + deep)


def _length(data: bytes) -> bytes:
    size, out = len(data), b""
    while size > 0x7F:
        out += bytes([size & 0x7F | 0x80])
        size >>= 7
    return out + bytes([size])
