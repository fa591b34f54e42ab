"""`/v1/batches` of a router on a queue in SQLite, as OpenAI's own client uses it; the test ends the items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from chiron.batch import wire
from chiron.batch.contract import BatchQueue, UnavailableError
from chiron.batch.records import NewBatch
from services.router.batch.settings import BatchSettings
from services.router.http.batches.source import Source
from tests.support.batch_work import hand_in, item
from tests.support.http_door import ANY, openai_at, post
from tests.support.openai_batches import (
    CHAT,
    COMPLETIONS,
    Hand,
    created,
    jsonl,
    line,
    lines,
    once,
    read,
    uploaded,
)


class Cluster:
    """A router without instances: what waits in its queue is the test's to end."""

    def __init__(self, router: Any, client: AsyncOpenAI, hand: Hand) -> None:
        self.router, self.client, self.hand = router, client, hand

    @property
    def queue(self) -> BatchQueue:
        return self.router.router._batch.queue

    @property
    def url(self) -> str:
        return self.router.router.http_url


@pytest.fixture
async def cluster(start_router, controller, tmp_path: Path, monkeypatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr("services.router.http.batches.work.HOLD_S", 0.3)
    controller.add("m")
    controller.add("other")
    router = await start_router(batch=BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}"), http=ANY)
    async with openai_at(router.router.http_url) as client:
        yield Cluster(router, client, await Hand.on(router.router._batch.queue))


async def test_a_batch_goes_its_way_and_its_answers_are_in_a_file(cluster: Cluster) -> None:
    client = cluster.client
    file = await uploaded(client, lines(3))
    batch = await client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"purpose": "nightly"},
    )
    assert (batch.object, batch.status, batch.input_file_id) == ("batch", "validating", file.id)
    assert (batch.endpoint, batch.completion_window, batch.model) == (CHAT, "24h", "m")
    assert batch.metadata == {"purpose": "nightly"}
    assert batch.expires_at == pytest.approx(batch.created_at + 86_400, abs=1)
    running = await once(client, batch.id, "in_progress")
    assert running.in_progress_at >= running.created_at
    assert (running.request_counts.total, running.request_counts.completed) == (3, 0)
    assert (running.output_file_id, running.error_file_id, running.errors) == (None, None, None)
    await cluster.hand.answer(*await cluster.hand.claim(batch.id))
    done = await once(client, batch.id)
    assert done.status == "completed"
    assert done.completed_at >= done.finalizing_at >= done.in_progress_at
    assert done.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (15, 9, 24)
    assert done.error_file_id is None
    found = await read(client, done.output_file_id)
    assert found.keys() == {"c0", "c1", "c2"}
    for custom_id, one in found.items():
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        body = one["response"]["body"]
        assert (body["object"], body["model"]) == ("chat.completion", "m")
        assert body["choices"][0]["message"]["content"] == f"answer to {custom_id}"
        assert body["usage"]["completion_tokens"] == 3
    assert (await client.files.retrieve(done.output_file_id)).purpose == "batch_output"


async def test_completions_are_answered_in_their_own_shape(cluster: Cluster) -> None:
    batch = await created(cluster.client, lines(1, url=COMPLETIONS), endpoint=COMPLETIONS)
    await once(cluster.client, batch.id, "in_progress")
    await cluster.hand.answer(*await cluster.hand.claim(batch.id))
    done = await once(cluster.client, batch.id)
    body = (await read(cluster.client, done.output_file_id))["c0"]["response"]["body"]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "answer to c0")


async def test_requests_that_fail_are_in_the_error_file(cluster: Cluster) -> None:
    batch = await created(cluster.client, lines(3))
    await once(cluster.client, batch.id, "in_progress")
    first, second, third = await cluster.hand.claim(batch.id)
    await cluster.hand.answer(second)
    await cluster.hand.fail(first)
    await cluster.hand.fail(third, reason="ATTEMPTS_EXHAUSTED")
    done = await once(cluster.client, batch.id)
    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
    assert (await read(cluster.client, done.output_file_id)).keys() == {"c1"}
    errors = await read(cluster.client, done.error_file_id)
    assert errors.keys() == {"c0", "c2"}
    assert [errors[name]["response"]["status_code"] for name in ("c0", "c2")] == [400, 500]
    assert errors["c0"]["response"]["body"]["error"] == {
        "message": "it is wrong",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_value",
    }
    assert errors["c0"]["error"] is None


WRONG = (
    (line("good"), None, None),
    ("{", "invalid_json_line", None),
    ("[1]", "invalid_json_line", None),
    ({**line("a"), "custom_id": None}, "missing_required_parameter", "custom_id"),
    ({**line("b"), "method": "GET"}, "invalid_method", "method"),
    ({**line("c"), "url": COMPLETIONS}, "invalid_url", "url"),
    ({**line("d"), "more": 1}, "unknown_parameter", "more"),
    ({**line("e"), "body": "x"}, "invalid_type", "body"),
    (line("f", model="other"), "mismatched_model", "body.model"),
    (line("good"), "duplicate_custom_id", "custom_id"),
    (line("g", temperature="hot"), "invalid_type", "body.temperature"),
    (line("h", temperature=-1), "invalid_value", "body.temperature"),
    (line("i", stream=True), "unsupported_parameter", "body.stream"),
    (line("j", slo={"deadline_s": 5}), "invalid_value", "body.slo.deadline_s"),
    (line("k", request_class="interactive"), "invalid_value", "body.request_class"),
    (line("l", messages=[]), "invalid_value", "body.messages"),
    (line("m" * 200), "invalid_value", "custom_id"),
    (line(""), "invalid_value", "custom_id"),
    ({**line("r"), "custom_id": 7}, "invalid_type", "custom_id"),
    (line("s\u200b"), "invalid_value", "custom_id"),
    (line("n", colour="red"), "unknown_parameter", "body.colour"),
    (line("o", n=3, temperature=0), "unsupported_parameter", "body.n"),
    (line("p", return_token_ids=True), "unsupported_parameter", "body.return_token_ids"),
    (line("q", request_id="mine"), "invalid_value", "body.request_id"),
)


async def test_every_line_that_is_wrong_is_named_and_nothing_runs(cluster: Cluster) -> None:
    content = b"\n" + jsonl(*(one for one, _, _ in WRONG))
    batch = await once(cluster.client, (await created(cluster.client, content)).id)
    assert batch.status == "failed"
    assert batch.failed_at >= batch.created_at
    assert batch.errors.object == "list"
    # The store finds what occurs twice, a group of lines at a time.
    found = sorted((one.line, one.code, one.param) for one in batch.errors.data)
    expected = [(number, code, param) for number, (_, code, param) in enumerate(WRONG, 2) if code]
    assert found == sorted(expected)
    assert all(one.message for one in batch.errors.data)
    assert batch.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert (batch.output_file_id, batch.error_file_id, batch.in_progress_at) == (None, None, None)
    assert await cluster.hand.claim(batch.id) == []
    assert list(await cluster.queue.units()) == []


async def test_each_reason_against_a_custom_id_is_told_by_itself(cluster: Cluster) -> None:
    content = jsonl(line("m" * 200), line("ab\u200bc"), line("\x00"))
    batch = await once(cluster.client, (await created(cluster.client, content)).id)
    assert [one.message for one in batch.errors.data] == [
        "custom_id: must have at most 128 characters, not 200",
        "custom_id: must be printable, and has U+200B at character 3",
        "custom_id: must be printable, and has U+0000 at character 1",
    ]


async def test_of_very_many_wrong_lines_the_first_are_named_and_the_others_counted(cluster: Cluster) -> None:
    async def told(content: bytes) -> list[Any]:
        batch = await once(cluster.client, (await created(cluster.client, content)).id)
        return list(batch.errors.data)

    # As many as are named at most: all are.
    assert [one.line for one in await told(b"{\n" * 100)] == [*range(1, 101)]
    # One more: the last entry counts what has no entry.
    errors = await told(b"{\n" * 101)
    assert [one.line for one in errors] == [*range(1, 100), None]
    assert (errors[-1].code, errors[-1].message) == (
        "too_many_errors",
        "2 more lines are wrong, which are not named here.",
    )
    errors = await told(b"{\n" * 10_100)
    assert len(errors) == 100
    assert errors[-1].message == (
        "9901 more lines are wrong, which are not named here. What follows was not looked at."
    )
    # The store finds what occurs twice later than what is wrong with a line by itself.
    twice = jsonl(*[line("a")] * 3) + b"{\n" * 200
    errors = await told(twice)
    assert [one.line for one in errors] == [*range(2, 101), None]
    assert [one.code for one in errors[:3]] == [
        "duplicate_custom_id",
        "duplicate_custom_id",
        "invalid_json_line",
    ]
    assert errors[-1].message.startswith("103 more lines")


async def test_more_requests_or_lines_than_a_batch_may_have_are_refused(
    start_router, controller, tmp_path: Path
) -> None:
    controller.add("m")
    settings = BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}", items_per_batch=5)
    router = await start_router(batch=settings, http=ANY)
    async with openai_at(router.router.http_url) as client:
        for content, told in (
            (lines(6), ("too_many_requests", 6)),
            (b"\n" * 11_000, ("too_many_requests", None)),
        ):
            batch = await once(client, (await created(client, content)).id)
            assert [(one.code, one.line) for one in batch.errors.data] == [told]
        # It is told whatever else is wrong.
        batch = await once(client, (await created(client, b"{\n" * 120 + lines(6))).id)
        assert len(batch.errors.data) == 100
        assert [(one.code, one.line) for one in batch.errors.data[-3:]] == [
            ("invalid_json_line", 98),
            ("too_many_requests", 126),
            ("too_many_errors", None),
        ]
        assert batch.errors.data[-1].message.startswith("22 more lines")
        await once(client, (await created(client, lines(5) + b"\n\n")).id, "in_progress")


NO_BATCHES = (
    (b"", "empty_file", None),
    (b"\n \r\n", "empty_file", None),
    (lines(1, model="unknown"), "model_not_found", 1),
    (lines(1, model="m:none"), "model_not_found", 1),
    (b'{"custom_id": "a", "body": ' + b'{"x":' * 1_000, "invalid_json_line", 1),
    (b'{"custom_id": "a", "body": ' + b'{"x":' * 200_000, "too_many_values", 1),
)


async def test_a_file_that_is_no_batch_is_refused(cluster: Cluster) -> None:
    for content, code, number in NO_BATCHES:
        batch = await once(cluster.client, (await created(cluster.client, content)).id)
        assert batch.status == "failed"
        assert [(one.code, one.line) for one in batch.errors.data] == [(code, number)]


async def test_lines_of_any_ending_are_read(cluster: Cluster) -> None:
    whole = b"\xef\xbb\xbf" + lines(3).replace(b"\n", b"\r\n\r\n").rstrip()
    batch = await created(cluster.client, whole)
    running = await once(cluster.client, batch.id, "in_progress")
    assert running.request_counts.total == 3


async def test_items_are_what_the_lines_ask_for(cluster: Cluster) -> None:
    content = jsonl(line("a", priority=7, seed=3, service_tier="default", slo={"itl_ms": 40}))
    batch = await created(cluster.client, content, completion_window="90m")
    await once(cluster.client, batch.id, "in_progress")
    (unit,) = await cluster.queue.units()
    assert unit.deadline == pytest.approx(batch.created_at + 5_400, abs=2)
    assert unit.expire_late
    (claim,) = await cluster.hand.claim(batch.id)
    request = wire.request_of(claim.body)
    assert (claim.custom_id, request.model, request.priority, request.sampling.seed) == ("a", "m", 7, 3)
    assert request.slo.itl_ms == 40
    assert [message.content for message in request.chat.messages] == ["Tell me about a."]


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "soon"}, "completion_window"),
    ({"completion_window": "0s"}, "completion_window"),
    ({"completion_window": 24}, "completion_window"),
    ({"metadata": {f"k{number}": "v" for number in range(17)}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"k": "\0"}}, "metadata"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
    ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
    ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
    ({"input_file_id": "file-0"}, "input_file_id"),
    ({"input_file_id": None}, "input_file_id"),
    ({"more": 1}, "more"),
)


async def test_a_batch_that_cannot_be_is_refused_at_once(cluster: Cluster) -> None:
    file = await uploaded(cluster.client, lines(1))
    for asked, param in REFUSED:
        body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **asked}
        answer = await post(cluster.url, "/v1/batches", body)
        assert answer.status == (404 if asked.get("input_file_id") else 400), asked
        assert answer.error["param"] == param
    assert (await cluster.client.batches.list()).data == []


async def test_a_cancelled_batch_keeps_what_was_done(cluster: Cluster) -> None:
    client = cluster.client
    batch = await created(client, lines(4))
    await once(client, batch.id, "in_progress")
    first, *rest = await cluster.hand.claim(batch.id, 2)
    await cluster.hand.answer(first)
    stopping = await client.batches.cancel(batch.id)
    assert stopping.status in ("cancelling", "cancelled")
    assert stopping.cancelling_at >= stopping.in_progress_at
    assert await cluster.queue.checkpoint(cluster.hand.session, [(rest[0].lease, b"x")]) == [rest[0].lease]
    over = await once(client, batch.id)
    assert over.status == "cancelled"
    assert over.cancelled_at >= over.cancelling_at
    assert over.completed_at is None
    assert over.request_counts.model_dump() == {"total": 4, "completed": 1, "failed": 3}
    assert (await read(client, over.output_file_id)).keys() == {"c0"}
    errors = await read(client, over.error_file_id)
    assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
    assert {one["response"] for one in errors.values()} == {None}
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        await client.batches.cancel(batch.id)


async def test_what_is_over_cannot_be_cancelled(cluster: Cluster) -> None:
    client = cluster.client
    batch = await once(client, (await created(client, b"")).id)
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'failed'"):
        await client.batches.cancel(batch.id)


async def test_what_is_not_done_within_the_window_has_expired(cluster: Cluster) -> None:
    client = cluster.client
    batch = await created(client, lines(3), completion_window="2s")
    await once(client, batch.id, "in_progress")
    await cluster.hand.answer(*await cluster.hand.claim(batch.id, 1))
    over = await once(client, batch.id)
    assert over.status == "expired"
    assert over.expired_at >= over.expires_at
    assert over.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
    assert (await read(client, over.output_file_id)).keys() == {"c0"}
    errors = await read(client, over.error_file_id)
    assert errors.keys() == {"c1", "c2"}
    assert errors["c1"]["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }


async def test_batches_are_listed_page_by_page_the_newest_first(cluster: Cluster) -> None:
    client = cluster.client
    file = await uploaded(client, lines(1))
    made = [
        (await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="1h")).id
        for _ in range(5)
    ]
    assert sorted([one.id async for one in client.batches.list(limit=2)]) == sorted(made)
    page = await client.batches.list(limit=2)
    assert [one.id for one in page.data] == sorted(made, reverse=True)[:2]
    assert page.has_more
    newest_first = [one.id for one in (await client.batches.list()).data]
    second = await page.get_next_page()
    assert [one.id for one in second.data] == newest_first[2:4]
    last = await client.batches.list(limit=2, after=second.data[-1].id)
    assert ([one.id for one in last.data], last.has_more) == (newest_first[4:], False)
    assert not (await client.batches.list(after=newest_first[-1])).data


async def test_a_page_of_batches_begins_after_one_that_was_deleted_but_not_after_an_invented_one(
    cluster: Cluster,
) -> None:
    client = cluster.client
    made = []
    for _ in range(3):
        made.append((await created(client, lines(1))).id)
        await asyncio.sleep(0.002)  # Ids made within a millisecond have no order.
    await once(client, made[1], "in_progress")
    await client.batches.cancel(made[1])
    await once(client, made[1], "cancelled")
    await cluster.queue.delete(("", made[1]))
    assert [one.id for one in (await client.batches.list(after=made[1])).data] == made[:1]
    await hand_in(cluster.queue, [item(0)], batch_id="other-door", tenant="")
    invented = f"batch_{int(made[0].removeprefix('batch_'), 16) + 1:032x}"
    for wrong in (invented, made[0].replace("batch_", "file-"), "batch_1", "b/../x", "other-door"):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.batches.list(after=wrong)
        assert (raised.value.param, raised.value.code) == ("after", "invalid_value")
        assert wrong in str(raised.value)


async def test_batches_that_came_by_grpc_are_not_seen_here(cluster: Cluster) -> None:
    await hand_in(cluster.queue, [item(0)], batch_id="other-door", tenant="")
    assert (await cluster.client.batches.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await cluster.client.batches.retrieve("other-door")
    for batch_id in ("batch_0", "b%00"):
        with pytest.raises(openai.NotFoundError) as raised:
            await cluster.client.batches.cancel(batch_id)
        assert raised.value.code == "batch_not_found"


async def test_files_of_results_can_be_deleted_and_expire(cluster: Cluster) -> None:
    client = cluster.client
    expiry: Any = {"anchor": "created_at", "seconds": 3_600}
    batch = await created(client, lines(2), output_expires_after=expiry)
    await once(client, batch.id, "in_progress")
    first, second = await cluster.hand.claim(batch.id)
    await cluster.hand.answer(first)
    await cluster.hand.fail(second)
    done = await once(client, batch.id)
    output = await client.files.retrieve(done.output_file_id)
    assert output.filename == f"{batch.id}_output.jsonl"
    assert output.expires_at == pytest.approx(output.created_at + 3_600, abs=1)
    listed = [one.id async for one in client.files.list(purpose="batch_output")]
    assert sorted(listed) == sorted([done.output_file_id, done.error_file_id])
    assert (await client.files.delete(done.output_file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(done.output_file_id)
    assert (await read(client, done.error_file_id)).keys() == {"c1"}
    with pytest.raises(openai.BadRequestError):
        await client.batches.create(input_file_id=done.error_file_id, endpoint=CHAT, completion_window="24h")


async def test_the_input_file_may_go_once_the_batch_is_accepted(cluster: Cluster) -> None:
    client = cluster.client
    batch = await created(client, lines(2))
    await once(client, batch.id, "in_progress")
    await client.files.delete(batch.input_file_id)
    await cluster.hand.answer(*await cluster.hand.claim(batch.id))
    assert (await once(client, batch.id)).status == "completed"


async def test_a_batch_that_nobody_has_begun_is_taken_up(cluster: Cluster) -> None:
    """As after a router that was killed between its answer and its first look at the file."""
    file = await uploaded(cluster.client, lines(2))
    await cluster.queue.create(unmade(file.id))
    await once(cluster.client, "batch_1", "in_progress")


async def test_an_input_file_that_is_gone_before_it_was_read_fails_the_batch(cluster: Cluster) -> None:
    await cluster.queue.create(unmade("file-gone"))
    batch = await once(cluster.client, "batch_1")
    assert [one.code for one in batch.errors.data] == ["input_file_not_found"]


def unmade(file_id: str, deadline_s: float = 600.0, batch_id: str = "batch_1") -> NewBatch:
    """A batch that no router knows of yet."""
    source = Source(file_id, CHAT, "24h", "m")
    return NewBatch(batch_id, "", deadline_s, expire_late=True, source=source.text())


async def test_a_batch_may_be_cancelled_before_its_file_was_read(cluster: Cluster) -> None:
    file = await uploaded(cluster.client, lines(3))
    key = ("", (await cluster.queue.create(unmade(file.id))).batch_id)
    await cluster.queue.append(key, [item(0)])
    assert (await cluster.client.batches.cancel(key[1])).status == "cancelling"
    over = await once(cluster.client, key[1])
    assert over.status == "cancelled"
    assert over.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert (over.output_file_id, over.error_file_id, over.in_progress_at) == (None, None, None)


async def test_a_batch_whose_window_closes_before_it_was_read_expires(cluster: Cluster) -> None:
    file = await uploaded(cluster.client, lines(3))
    await cluster.queue.create(unmade(file.id, deadline_s=0.01))
    over = await once(cluster.client, "batch_1")
    assert over.status == "expired"
    assert (await read(cluster.client, over.error_file_id)).keys() == {"c0", "c1", "c2"}


async def test_a_store_that_is_away_for_a_while_delays_a_batch_and_its_files(
    cluster: Cluster, monkeypatch
) -> None:
    """Each call fails once after it has happened, and once before."""
    queue, failed = cluster.queue, []

    def failing(name: str) -> Any:
        call = getattr(queue, name)

        async def away(*arguments: Any, **options: Any) -> Any:
            if failed.count(name) < 2:
                failed.append(name)
                if failed.count(name) == 1:
                    await call(*arguments, **options)
                raise UnavailableError("the test has taken the store away", uncertain=True)
            return await call(*arguments, **options)

        return away

    for name in ("append", "seal", "finalize", "adopt"):
        monkeypatch.setattr(queue, name, failing(name))
    batch = await created(cluster.client, lines(300))
    await once(cluster.client, batch.id, "in_progress")
    claims = await cluster.hand.claim(batch.id)
    assert len(claims) == 300
    await cluster.hand.answer(*claims)
    done = await once(cluster.client, batch.id)
    assert len(await read(cluster.client, done.output_file_id)) == 300
    assert {"append", "seal", "finalize", "adopt"} == set(failed)


async def test_a_file_that_this_program_fails_to_read_fails_its_batch(cluster: Cluster, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("services.router.http.batches.requests.RequestReader.read", broken)
    batch = await once(cluster.client, (await created(cluster.client, lines(1))).id)
    assert [one.code for one in batch.errors.data] == ["server_error"]
