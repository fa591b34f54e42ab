"""The one table from Chiron's errors to OpenAI's."""

from __future__ import annotations

import json

import pytest

from chiron.rpc.errors import ChironError, Reason
from services.router.http.errors import ANSWERS, HttpError, of_chiron, renamed

FIELDS = {"sampling": "", "sampling.structured_output": "response_format", "chat": "", "prompt": "prompt"}


def test_every_reason_has_an_answer() -> None:
    assert set(ANSWERS) == set(Reason)


def test_every_answer_is_an_error_that_openai_s_clients_know() -> None:
    for reason, answer in ANSWERS.items():
        assert 400 <= answer.status < 600, reason
        assert answer.type in ("invalid_request_error", "rate_limit_error", "server_error"), reason
        assert (answer.status >= 500) == (answer.type == "server_error"), reason
        assert (answer.status == 429) == (answer.type == "rate_limit_error"), reason


def test_what_is_refused_for_want_of_room_can_be_told_apart() -> None:
    reasons = ("QUEUE_FULL", "SLO_OUT_OF_REACH", "QUOTA_EXCEEDED", "TOO_MANY_ABANDONED", "BATCH_QUEUE_FULL")
    answers = [ANSWERS[Reason[name]] for name in reasons]
    assert {answer.status for answer in answers} == {429}
    assert len({answer.code for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("after_s", "seconds", "milliseconds"), [(0.0, "1", "1"), (0.25, "1", "250"), (1.2, "2", "1200")]
)
def test_the_time_to_wait_is_told_in_whole_seconds_and_exactly(
    after_s: float, seconds: str, milliseconds: str
) -> None:
    told = of_chiron(ChironError(Reason.QUEUE_FULL, "full", retry_after_s=after_s))
    assert told.headers["retry-after"] == seconds
    assert told.headers["retry-after-ms"] == milliseconds


def test_who_may_come_again_is_told_when_and_others_are_told_not_to() -> None:
    for reason, answer in ANSWERS.items():
        headers = of_chiron(ChironError(reason, "no")).headers
        if answer.status in (429, 503) and answer.retry:
            assert headers["retry-after"] == "1", reason
        elif answer.status in (409, 429) or answer.status >= 500:
            # These are the ones that the clients would retry of themselves.
            assert ("x-should-retry" in headers) != answer.retry, reason
        else:
            assert "retry-after" not in headers, reason


def test_a_request_that_never_fits_a_quota_is_not_tried_again() -> None:
    assert of_chiron(ChironError(Reason.QUOTA_EXCEEDED, "too large")).headers["x-should-retry"] == "false"
    later = of_chiron(ChironError(Reason.QUOTA_EXCEEDED, "used up", retry_after_s=3.0))
    assert later.headers["retry-after"] == "3"
    assert "x-should-retry" not in later.headers


def test_whoever_is_not_known_is_told_how_to_say_who_it_is() -> None:
    for reason in (Reason.CREDENTIALS_MISSING, Reason.KEY_INVALID, Reason.KEY_REVOKED):
        told = of_chiron(ChironError(reason, "who?"))
        assert (told.status, told.headers["www-authenticate"]) == (401, "Bearer")


def test_fields_are_called_what_the_caller_called_them() -> None:
    error = ChironError.invalid(
        [("sampling.max_tokens", "must be >= 1"), ("chat.messages[2].role", "must be user")]
    )
    told = of_chiron(error, FIELDS)
    assert told.param == "max_tokens"
    assert told.message == "max_tokens: must be >= 1; messages[2].role: must be user"


@pytest.mark.parametrize(
    ("field", "here"),
    [
        ("sampling.structured_output.json_schema", "response_format.json_schema"),
        ("sampling", ""),
        ("samplings", "samplings"),
        ("prompt", "prompt"),
        ("slo.ttft_ms", "slo.ttft_ms"),
    ],
)
def test_the_longest_known_beginning_of_a_field_is_renamed(field: str, here: str) -> None:
    assert renamed(field, FIELDS) == here


def test_an_error_is_openai_s_object() -> None:
    error = HttpError(400, "bad", param="n", code="invalid_value")
    assert json.loads(error.body()) == {
        "error": {"message": "bad", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
