"""The head of an answer: its name, and the service tier that it has got."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chiron.v1 import access_pb2, types_pb2
from services.router.http.answering import head_of, name_request
from services.router.http.completions.request import read_completion, to_generates
from services.router.http.head import Head
from services.router.http.promises import promised

BATCH = types_pb2.REQUEST_CLASS_BATCH


def exchange(key_class: types_pb2.RequestClass.ValueType | None = None) -> Any:
    defaults = None if key_class is None else access_pb2.KeyDefaults(request_class=key_class)
    who = SimpleNamespace(key=SimpleNamespace(defaults=defaults))
    return SimpleNamespace(request_id="req-7", call=SimpleNamespace(who=who))


def head(of: Any, **fields: Any) -> Head:
    request = read_completion({"model": "m:poet", "prompt": "x"} | fields)
    return head_of("cmpl", of, request, to_generates(request, promised(request, {}))[0])


@pytest.mark.parametrize(
    ("fields", "key_class", "tier"),
    [
        ({}, None, "default"),
        ({}, BATCH, "flex"),
        ({"request_class": "interactive"}, BATCH, "default"),
        ({"service_tier": "auto"}, None, "default"),
        ({"service_tier": "auto"}, BATCH, "flex"),
        ({"service_tier": "default"}, BATCH, "default"),
        ({"service_tier": "flex"}, None, "flex"),
        ({"service_tier": "priority"}, None, "default"),
        ({"service_tier": "auto", "request_class": "batch"}, None, "flex"),
    ],
)
def test_the_tier_is_that_of_the_class_that_counts(fields: dict[str, Any], key_class: Any, tier: str) -> None:
    assert head(exchange(key_class), **fields).tier == tier


def test_where_nobody_is_asked_who_calls_the_request_alone_counts() -> None:
    unknown = SimpleNamespace(request_id="req-7", call=SimpleNamespace(who=None))
    assert head(unknown, service_tier="auto").tier == "default"


def test_an_answer_is_named_after_its_exchange_or_as_the_caller_says() -> None:
    assert head(exchange()).id == "cmpl-7"
    assert head(exchange(), request_id="mine").id == "cmpl-mine"
    assert head(exchange()).model == "m:poet"


def test_requests_without_a_name_have_that_of_their_exchange() -> None:
    for prompt, wanted in (("x", ["req-7"]), (["x", "y"], ["req-7-0", "req-7-1"])):
        request = read_completion({"model": "m", "prompt": prompt})
        messages = to_generates(request, promised(request, {}))
        name_request(exchange(), messages)
        assert [message.request_id for message in messages] == wanted
