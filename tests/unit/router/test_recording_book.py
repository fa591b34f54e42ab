"""What a recording says of each request, and what it leaves out."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.words import RequestClass
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.recording import book as book_module
from services.router.recording.book import Book
from services.router.recording.settings import RecordingSettings
from services.router.request import PendingRequest

Ended = worker_pb2.EndedRequest
MODELS = [control_pb2.RoutedModel(name="m", spec_version=3)]


def make(folder: Path, **settings: int) -> Book:
    return Book(RecordingSettings(path=folder, **settings), "r-1", lambda: MODELS)


@pytest.fixture
async def book(tmp_path: Path) -> Book:
    return make(tmp_path)


def request(name: str, **fields: Any) -> PendingRequest:
    now = asyncio.get_running_loop().time()
    given = {"request_class": RequestClass.INTERACTIVE, "arrived": now, "prompt_tokens": 7, **fields}
    return PendingRequest(name, "m", **given)


def ended(name: str, ending: Ended.Ending.ValueType = Ended.ENDING_WHOLE, output: int = 5) -> Ended:
    return Ended(
        request_id=name,
        ending=ending,
        usage=pb.Usage(prompt_tokens=9, completion_tokens=output, cached_prompt_tokens=2),
        timing=pb.Timing(ttft_ms=12.3456, itl_mean_ms=4, total_ms=40, preemptions=1, instance_id="m-1"),
    )


async def told(book: Book, folder: Path) -> list[dict[str, Any]]:
    """All lines but the headers."""
    await book.flush()
    lines = [json.loads(line) for line in text_of(folder).splitlines()]
    return [line for line in lines if "chiron_recording" not in line]


def text_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.jsonl")))


async def test_a_whole_answer_is_one_line_with_the_workers_figures(book: Book, tmp_path: Path) -> None:
    slo = types_pb2.Slo(ttft_ms=500)
    book.begin(request("secret-name", tenant="acme", slo=slo, elapsed_s=1.5, priority=-3), 0)
    book.ended([ended("unknown"), ended("secret-name")])
    [line] = await told(book, tmp_path)
    assert line.pop("at") == pytest.approx(-1.5, abs=0.5)
    assert len(line.pop("id")) == 16
    assert line.pop("took_s") == pytest.approx(1.5, abs=0.5)
    assert line == {
        "model": "m",
        "class": "interactive",
        "tenant": 0,
        "priority": -3,
        "prompt": 9,
        "output": 5,
        "cached": 2,
        "choices": 1,
        "slo": {"ttft_ms": 500},
        "ttft_ms": 12.346,
        "itl_mean_ms": 4,
        "total_ms": 40,
        "preemptions": 1,
        "instance": "m-1",
        "end": "ok",
        "attempts": 1,
        "resumes": 0,
    }
    text = text_of(tmp_path)
    assert "acme" not in text
    assert "secret-name" not in text
    head = json.loads(text.splitlines()[0])
    assert (head["chiron_recording"], head["router"], list(head["models"])) == (1, "r-1", ["m"])


async def test_tenants_are_numbers(book: Book, tmp_path: Path) -> None:
    for name, tenant in (("a", "x"), ("b", "y"), ("c", "x")):
        book.begin(request(name, tenant=tenant), 0)
    book.ended([ended("a"), ended("b"), ended("c")])
    assert [line["tenant"] for line in await told(book, tmp_path)] == [0, 1, 0]


async def test_a_resumed_stream_is_one_request(book: Book, tmp_path: Path) -> None:
    book.begin(request("r"), 0)
    book.ended([ended("r", Ended.ENDING_GIVEN_UP, output=2)])
    book.begin(request("r", resumed_at=1.0), 1)
    book.ended([ended("r", output=8)])
    [line] = await told(book, tmp_path)
    assert (line["end"], line["output"], line["attempts"]) == ("ok", 8, 2)
    assert line["resumes"] == 2


@pytest.mark.parametrize("told_first", [True, False])
async def test_what_was_handed_back_is_written_when_it_has_gone_on_elsewhere(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_first: bool
) -> None:
    book.begin(request("r", request_class=RequestClass.BATCH), 0)
    end = ended("r", Ended.ENDING_GIVEN_UP, output=2)
    if told_first:
        book.ended([end])
    book.handed_back("r")
    if not told_first:
        book.ended([end])
    later = book._time() + 20 * book_module._SETTLE_S
    monkeypatch.setattr(book, "_time", lambda: later)
    assert await told(book, tmp_path) == []
    book.ended([ended("r", output=8)])
    [line] = await told(book, tmp_path)
    assert (line["end"], line["output"]) == ("ok", 8)


async def test_an_answer_that_came_through_is_whole_whatever_its_last_worker_told(
    book: Book, tmp_path: Path
) -> None:
    book.begin(request("r", request_class=RequestClass.BATCH), 0)
    book.ended([ended("r", Ended.ENDING_GIVEN_UP, output=2)])
    book.handed_back("r")
    last = ended("r", output=8)
    book.answered("r", pb.OutputDelta(usage=last.usage, timing=last.timing))
    # The worker's word comes late, and somebody else's request is none of this router's.
    book.ended([last])
    book.answered("other", pb.OutputDelta(usage=last.usage))
    [line] = await told(book, tmp_path)
    assert (line["end"], line["output"], line["ttft_ms"]) == ("ok", 8, 12.346)


async def test_refused_ones_are_written_at_once_others_once_they_have_settled(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("refused", "left", "failed", "again"):
        book.begin(request(name), 0)
    book.gave_up("refused", "refused", "QUEUE_FULL")
    book.gave_up("left", "cancelled")
    book.ended([ended("left", Ended.ENDING_CANCELLED, output=3), ended("failed", Ended.ENDING_FAILED)])
    book.gave_up("again", "failed", "RETRY_ELSEWHERE")
    [line] = await told(book, tmp_path)
    assert (line["end"], line["reason"], "output" in line) == ("refused", "QUEUE_FULL", False)
    book.begin(request("again"), 1)
    later = book._time() + book_module._SETTLE_S + 1
    monkeypatch.setattr(book, "_time", lambda: later)
    by_end = {line["end"]: line for line in (await told(book, tmp_path))[1:]}
    assert set(by_end) == {"cancelled", "failed"}
    assert by_end["cancelled"]["output"] == 3
    book.ended([ended("again")])
    last = (await told(book, tmp_path))[-1]
    assert (last["end"], last["attempts"], "reason" in last) == ("ok", 2, False)


async def test_items_arrive_with_their_batch_and_are_the_same_for_every_claim(
    book: Book, tmp_path: Path
) -> None:
    batch = ("acme", "nightly")
    now = asyncio.get_running_loop().time()
    book.batch(batch, now - 60)
    for name, index in (("claim-1", 0), ("claim-2", 0), ("claim-3", 1)):
        item = request(name, request_class=RequestClass.BATCH, deadline=now + 40)
        book.begin_item(item, batch, index)
    book.put_back("claim-1")
    book.ended([ended("claim-1"), ended("claim-2"), ended("claim-3")])
    lines = await told(book, tmp_path)
    assert [line["at"] for line in lines] == [pytest.approx(-60, abs=1)] * 2
    assert [line["deadline_s"] for line in lines] == [pytest.approx(100, abs=1)] * 2
    assert lines[0]["id"] != lines[1]["id"]
    again = make(tmp_path / "other")
    again.begin_item(request("claim-9"), batch, 0)
    again.ended([ended("claim-9")])
    assert (await told(again, tmp_path / "other"))[0]["id"] == lines[0]["id"]


async def test_what_is_under_way_at_the_end_is_written_as_it_is(book: Book, tmp_path: Path) -> None:
    running = asyncio.create_task(book.run())
    book.begin(request("r"), 0)
    book.close()
    await running
    [line] = await told(book, tmp_path)
    assert (line["end"], line["prompt"], "output" in line) == ("unknown", 7, False)


async def test_requests_beyond_the_bounds_are_counted_and_told(tmp_path: Path) -> None:
    book = make(tmp_path, pending=3, buffer_lines=2)
    for number in range(5):
        book.begin(request(f"r{number}"), 0)
    book.ended([ended(f"r{number}") for number in range(5)])
    lines = await told(book, tmp_path)
    # Two did not fit among those under way, a third did not into the buffer.
    assert (len(lines), book.written, book.left_out) == (3, 2, 3)
    assert lines[0] == {"left_out": 3}


async def test_a_full_disk_leaves_requests_out_and_is_said_once(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for name in ("a", "b"):
            book.begin(request(name), 0)
            book.ended([ended(name)])
            await book.flush()
    assert (book.written, book.left_out) == (0, 2)
    assert [record.message.count("No space left") for record in caplog.records] == [1]
    book.begin(request("c"), 0)
    book.ended([ended("c")])
    lines = await told(book, tmp_path)
    assert lines[0] == {"left_out": 2}
    assert [line["end"] for line in lines[1:]] == ["ok"]
    assert "the recording goes on; 2 requests are missing" in caplog.text


async def test_a_slow_disk_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = make(tmp_path, buffer_lines=3)
    go, real = threading.Event(), os.write

    def slow(out: int, data: bytes) -> int:
        assert go.wait(30)
        return real(out, data)

    monkeypatch.setattr(os, "write", slow)
    book.begin(request("first"), 0)
    book.ended([ended("first")])
    flushing = asyncio.create_task(book.flush())
    await asyncio.sleep(0)
    for number in range(5):
        book.begin(request(f"r{number}"), 0)
        book.ended([ended(f"r{number}")])
    assert not flushing.done()
    assert book.left_out == 2
    go.set()
    await flushing
    assert len(await told(book, tmp_path)) == 5


@pytest.mark.parametrize("key", ["file_bytes", "files", "pending", "buffer_lines"])
def test_bounds_of_nothing_are_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{key}: must be >= "):
        RecordingSettings(path=tmp_path, **{key: 0})
