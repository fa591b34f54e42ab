"""Who wins where a promise is asked for in several places."""

from __future__ import annotations

from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.http.completions.request import read_completion
from services.router.http.errors import HttpError
from services.router.http.promises import Promises, promised

HEADERS = {
    "x-chiron-class": "interactive",
    "x-chiron-ttft-ms": "300",
    "x-chiron-itl-ms": "40.5",
    "x-chiron-deadline-s": "60",
    "x-chiron-priority": "-2",
    "x-chiron-refuse-if-late": "true",
}


def promises(headers: dict[str, str] | None = None, **fields: Any) -> Promises:
    return promised(read_completion({"model": "m", "prompt": "x"} | fields), headers or {})


def test_what_nobody_says_is_left_open() -> None:
    message = pb.GenerateRequest()
    promises().put(message)
    assert message == pb.GenerateRequest()


def test_headers_say_all_of_it() -> None:
    message = pb.GenerateRequest()
    promises(HEADERS).put(message)
    assert message == pb.GenerateRequest(
        request_class=types_pb2.REQUEST_CLASS_INTERACTIVE,
        slo=types_pb2.Slo(ttft_ms=300, itl_ms=40.5, deadline_s=60, refuse_if_late=True),
        priority=-2,
    )


def test_the_body_wins_over_headers_field_by_field() -> None:
    got = promises(HEADERS, slo={"ttft_ms": 100, "refuse_if_late": False}, priority=0, request_class="batch")
    assert got == Promises(
        request_class="batch", ttft_ms=100, itl_ms=40.5, deadline_s=60, refuse_if_late=False, priority=0
    )


@pytest.mark.parametrize(
    ("tier", "headers", "kind"),
    [
        ("flex", {}, "batch"),
        ("default", {}, "interactive"),
        ("priority", {}, "interactive"),
        ("fast", {}, "interactive"),
        ("scale", {}, "interactive"),
        ("auto", {}, ""),
        ("flex", {"x-chiron-class": "interactive"}, "interactive"),
    ],
)
def test_service_tiers_are_classes_and_lose_to_headers(tier: str, headers: dict[str, str], kind: str) -> None:
    assert promises(headers, service_tier=tier).request_class == kind


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-chiron-class", "slow"),
        ("x-chiron-ttft-ms", "soon"),
        ("x-chiron-ttft-ms", "0"),
        ("x-chiron-itl-ms", "nan"),
        ("x-chiron-deadline-s", "inf"),
        ("x-chiron-priority", "1.5"),
        ("x-chiron-priority", "99999999999"),
        ("x-chiron-refuse-if-late", "perhaps"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(header: str, value: str) -> None:
    with pytest.raises(HttpError) as caught:
        promises({header: value})
    assert (caught.value.status, caught.value.param) == (400, header)
    assert value in caught.value.message
