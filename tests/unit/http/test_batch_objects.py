"""A batch of the queue in OpenAI's words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chiron.batch import wire
from chiron.batch.filing import FileKind
from chiron.batch.records import Batch, BatchCounts, BatchState, ItemState, Result
from chiron.v1 import batch_pb2, inference_pb2
from services.router.http.batches.faults import MOST, Fault, Faults, errors_of
from services.router.http.batches.objects import batch_object, status_of
from services.router.http.batches.results import kind_of, line_of
from services.router.http.batches.source import CHAT, COMPLETIONS, Source
from services.router.http.batches.window import window_s
from services.router.http.errors import HttpError

SOURCE = Source("file-1", CHAT, "24h", "m", "key", 7_200.0)
BATCH = Batch(
    batch_id="batch_1",
    tenant="acme",
    state=BatchState.RECEIVING,
    created=1_000.5,
    deadline=87_400.5,
    expire_late=True,
    fail_invalid=False,
    priority=0,
    metadata={},
    items=0,
    cancelled=False,
    ended=None,
    expires=None,
    counts=BatchCounts(received=3, succeeded=1, failed=1, queued=1),
    source=SOURCE.text(),
)
ACTIVE = replace(BATCH, state=BatchState.ACTIVE, sealed=1_001.0)
CANCELLING = replace(ACTIVE, state=BatchState.CANCELLING, cancelled=True, cancelled_at=1_002.0)
ENDED = replace(
    ACTIVE, state=BatchState.ENDED, ended=1_003.0, counts=BatchCounts(received=3, succeeded=2, failed=1)
)
CLOSED = replace(ENDED, closed=1_004.0, output_file="file-2")


@pytest.mark.parametrize(
    ("batch", "status", "at"),
    [
        (BATCH, "validating", None),
        (ACTIVE, "in_progress", None),
        (CANCELLING, "cancelling", None),
        (ENDED, "finalizing", None),
        (replace(ENDED, cancelled=True), "cancelling", None),
        (CLOSED, "completed", "completed_at"),
        (replace(CLOSED, cancelled=True), "cancelled", "cancelled_at"),
        (replace(CLOSED, counts=BatchCounts(received=3, succeeded=2, expired=1)), "expired", "expired_at"),
        (replace(CLOSED, sealed=None, refusal='[{"code": "x"}]'), "failed", "failed_at"),
    ],
)
def test_each_state_has_its_status_and_its_instant(batch: Batch, status: str, at: str | None) -> None:
    told = batch_object(batch)
    assert told["status"] == status_of(batch) == status
    ends = {name: told[name] for name in ("completed_at", "cancelled_at", "expired_at", "failed_at")}
    assert ends == {**dict.fromkeys(ends), **({} if at is None else {at: 1_004})}


def test_counts_are_those_of_the_files_once_it_is_accepted() -> None:
    assert batch_object(BATCH)["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    counts = BatchCounts(received=10, succeeded=4, failed=3, expired=2, cancelled=1)
    told = batch_object(replace(CLOSED, counts=counts))
    assert told["request_counts"] == {"total": 10, "completed": 4, "failed": 6}


def test_a_source_is_read_as_it_was_written() -> None:
    assert Source.of(SOURCE.text()) == SOURCE


def test_the_first_faults_are_named_and_the_others_counted() -> None:
    faults = Faults()
    for number in range(1, MOST + 4):
        faults.add(Fault("wrong", "x" * 5_000, number, "p" * 500))
    told = errors_of(faults.text())
    assert told["object"] == "list"
    assert [one["line"] for one in told["data"]] == [*range(1, MOST), None]
    assert told["data"][-1]["message"].startswith("4 more lines")
    assert max(len(one["message"]) for one in told["data"]) <= 400
    assert len(told["data"][0]["param"]) == 100


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86_400.0), ("90m", 5_400.0), ("1.5h", 5_400.0), ("7d", 604_800.0), ("2s", 2.0)],
)
def test_a_window_is_a_number_of_one_unit(text: str, seconds: float) -> None:
    assert window_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "24", "h", "0h", "-1h", "1h30m", "1e3s", " 24h", "24h ", "nan", "99999999999d"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(HttpError) as raised:
        window_s(text)
    assert (raised.value.status, raised.value.param) == (400, "completion_window")
    assert "at most 3650d" in raised.value.message


def result(state: ItemState, content: bytes = b"", **fields: object) -> Result:
    return Result(1, 0, "c0", state, content, 1_003.7, False, 1, **fields)  # type: ignore[arg-type]


OUTPUT = wire.succeeded(
    batch_pb2.ItemOutput(
        choices=[
            batch_pb2.ItemChoice(text="é", finish_reason=inference_pb2.FINISH_REASON_STOP, token_ids=[1, 2])
        ],
        usage=inference_pb2.Usage(prompt_tokens=5, completion_tokens=2),
        model="m",
    )
)


@pytest.mark.parametrize(
    ("one", "kind", "status", "code"),
    [
        (result(ItemState.SUCCEEDED, OUTPUT), FileKind.OUTPUT, 200, None),
        (
            result(ItemState.FAILED, wire.failed("MODEL_NOT_FOUND", "gone")),
            FileKind.ERRORS,
            404,
            "model_not_found",
        ),
        (
            result(ItemState.FAILED, wire.failed("OUT_OF_RANGE", "long")),
            FileKind.ERRORS,
            500,
            "internal_error",
        ),
        (result(ItemState.FAILED), FileKind.ERRORS, 500, "attempts_exhausted"),
        (result(ItemState.FAILED, damaged=True), FileKind.ERRORS, 500, "internal_error"),
        (result(ItemState.EXPIRED), FileKind.ERRORS, None, "batch_expired"),
        (result(ItemState.CANCELLED), FileKind.ERRORS, None, "batch_cancelled"),
    ],
)
def test_each_result_is_a_line_of_one_file(
    one: Result, kind: FileKind, status: int | None, code: str | None
) -> None:
    assert kind_of(one) is kind
    text = line_of("batch_1", SOURCE, one)
    assert text == line_of("batch_1", SOURCE, one)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    told = json.loads(text)
    assert told["custom_id"] == "c0"
    if status is None:
        assert (told["response"], told["error"]["code"]) == (None, code)
        return
    assert told["error"] is None
    assert told["response"]["status_code"] == status
    assert told["response"]["body"].get("error", {}).get("code") == code


def test_lines_of_a_batch_have_names_of_their_own() -> None:
    names = {
        json.loads(line_of("b", SOURCE, replace(result(ItemState.EXPIRED), index=n)))["id"] for n in range(9)
    }
    assert len(names) == 9


def test_answers_are_those_of_the_endpoint() -> None:
    chat = json.loads(line_of("b", SOURCE, result(ItemState.SUCCEEDED, OUTPUT)))["response"]["body"]
    assert chat["choices"][0]["message"]["content"] == "é"
    assert (chat["created"], chat["model"], chat["usage"]["total_tokens"]) == (1_003, "m", 7)
    text = line_of("b", replace(SOURCE, endpoint=COMPLETIONS), result(ItemState.SUCCEEDED, OUTPUT))
    assert json.loads(text)["response"]["body"]["choices"][0]["text"] == "é"
