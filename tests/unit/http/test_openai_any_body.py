"""Whatever a body holds, it comes to a request of the wire or to one error that says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.requests.validation import check_generate
from chiron.v1 import inference_pb2 as pb
from services.router.http.chat import request as chat
from services.router.http.completions import request as completions
from services.router.http.errors import HttpError
from services.router.http.promises import TIMES, Promises, promised
from services.router.http.reading import parsed

WORDS = [
    *("text", "function", "json_schema", "json_object", "user", "assistant", "tool", "auto", "required", "m"),
    *("name", "type", "role", "content", "arguments", "schema", "parameters", "tools", "mode", "id", "json"),
    *(
        "tool_calls",
        "tool_call_id",
        "allowed_tools",
        "include_usage",
        "ttft_ms",
        "12",
        "-1",
        "\0",
        "\U0010ffff",
    ),
]
NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 1e-320]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(WORDS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)
FUNCTION = st.fixed_dictionaries({"name": VALUES}, optional={"arguments": VALUES, "parameters": VALUES})
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}, optional={"id": VALUES})
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url"])}, optional={"text": VALUES}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.one_of(VALUES, st.lists(PART, max_size=2)),
        "tool_calls": st.lists(TOOL, max_size=2),
        "tool_call_id": VALUES,
        "refusal": VALUES,
    },
)


def bodies(module: Any, kind: Any, needed: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = {field.alias or name for name, field in kind.model_fields.items()}
    names |= module.ACCEPTED | module.REFUSED.keys()
    optional = dict.fromkeys(sorted(names - needed.keys()), VALUES)
    some = st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True)
    return some.flatmap(lambda chosen: st.fixed_dictionaries({**needed, **dict.fromkeys(chosen, VALUES)}))


CHATS = bodies(
    chat,
    chat.ChatRequest,
    {
        "model": st.just("m"),
        "messages": st.one_of(VALUES, st.lists(MESSAGE, min_size=1, max_size=2)),
        "tools": st.one_of(st.none(), st.lists(TOOL, max_size=2)),
        "tool_choice": st.one_of(VALUES, TOOL),
    },
)
TEXTS = bodies(completions, completions.CompletionRequest, {"model": st.just("m"), "prompt": VALUES})


def comes_to(messages: list[pb.GenerateRequest]) -> None:
    """Each can travel, and be judged as at any door."""
    for message in messages:
        assert pb.GenerateRequest.FromString(message.SerializeToString()) == message
        check_generate(message)


def told(error: HttpError) -> None:
    assert error.status == 400
    assert error.message
    json.loads(error.body())


@settings(deadline=None, max_examples=60)
@given(CHATS)
def test_any_chat(body: dict[str, Any]) -> None:
    try:
        request = chat.read_chat(parsed(json.dumps(body)))
        comes_to([chat.to_generate(request, promised(request, {}))])
    except HttpError as error:
        told(error)


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_any_text_completion(body: dict[str, Any]) -> None:
    try:
        request = completions.read_completion(parsed(json.dumps(body)))
        comes_to(completions.to_generates(request, promised(request, {})))
    except HttpError as error:
        told(error)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from([*TIMES, "x-chiron-class", "x-chiron-priority"]), st.text(max_size=6)))
def test_any_headers(headers: dict[str, str]) -> None:
    request = completions.read_completion({"model": "m", "prompt": "x"})
    try:
        comes_to(completions.to_generates(request, promised(request, headers)))
    except HttpError as error:
        told(error)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=40))
def test_any_bytes(body: bytes) -> None:
    try:
        found = parsed(body)
    except HttpError as error:
        told(error)
    else:
        assert isinstance(found, dict)


def test_what_these_tests_take_for_a_body_is_often_one() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "m"}], "tools": None, "tool_choice": None}
    request = chat.read_chat(parsed(json.dumps(body)))
    comes_to([chat.to_generate(request, Promises())])
    with pytest.raises(HttpError):
        chat.read_chat(parsed(json.dumps(body | {"n": 10**400})))
