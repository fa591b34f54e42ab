from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from chiron.cli.demo.figures import Figures
from chiron.cli.demo.plan import Ask, Backlog, Plan
from chiron.cli.demo.traffic import Traffic, prompt
from chiron.client import BatchNotFound, ProtocolError, StreamInterrupted
from chiron.client.batch.records import BatchProgress

ASKS = tuple(Ask(0.001 * number, 5 + number, 3) for number in range(20))


class FakeBatches:
    """Ends each batch with the progress that the test gives."""

    def __init__(self, end: BatchProgress | Exception) -> None:
        self.submitted: list[tuple[list[dict[str, Any]], float]] = []
        self._end = end

    async def submit(self, items: list[dict[str, Any]], *, deadline_s: float) -> SimpleNamespace:
        self.submitted.append((items, deadline_s))
        return SimpleNamespace(batch_id="b", progress=BatchProgress())

    async def watch(self, batch_id: str) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(batch_id=batch_id, progress=BatchProgress(queued=len(self.submitted[0][0])))
        if isinstance(self._end, Exception):
            raise self._end
        yield SimpleNamespace(batch_id=batch_id, progress=self._end)


class FakeClient:
    """Answers each request as the test says; remembers what was asked."""

    def __init__(
        self, answer: Callable[[], AsyncIterator[Any]], end: BatchProgress | Exception | None = None
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.batch = FakeBatches(end or BatchProgress())
        self._answer = answer

    def generate(self, **request: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        return self._answer()


def chunk(tokens: int, attempts: int = 1) -> SimpleNamespace:
    return SimpleNamespace(token_ids=(1,) * tokens, attempts=attempts, instance_id=f"i-{attempts}")


async def run(
    answer: Callable[[], AsyncIterator[Any]],
    plan: Plan | None = None,
    end: Any = None,
    settle_s: float = 30.0,
) -> tuple[Figures, FakeClient]:
    figures, client = Figures(ttft_slo_ms=5000, itl_slo_ms=5000), FakeClient(answer, end)
    traffic = Traffic(client, "toy", plan or Plan(ASKS, ()), figures)  # type: ignore[arg-type]
    await traffic.run(settle_s)
    return figures, client


async def whole() -> AsyncIterator[Any]:
    yield chunk(1)
    yield chunk(2, attempts=2)


async def second_attempt() -> AsyncIterator[Any]:
    yield chunk(3, attempts=2)


async def cut() -> AsyncIterator[Any]:
    yield chunk(1)
    raise StreamInterrupted("gone")


async def gap() -> AsyncIterator[Any]:
    yield chunk(1)
    raise ProtocolError("token 2 is missing")


async def short() -> AsyncIterator[Any]:
    yield chunk(2)


async def never() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield chunk(3)


async def test_every_ask_of_the_plan_is_sent_and_whole_answers_finish() -> None:
    figures, client = await run(whole)
    counts = figures.interactive

    assert [len(asked["prompt_token_ids"]) for asked in client.asked] == [ask.prompt_tokens for ask in ASKS]
    assert counts.requests == counts.finished == counts.met == counts.retried == len(ASKS)
    assert figures.tokens == 3 * len(ASKS)
    assert figures.errors == []


async def test_a_stream_whose_attempts_grow_after_its_first_token_was_resumed() -> None:
    assert (await run(whole))[0].interactive.resumed == len(ASKS)
    assert (await run(second_attempt))[0].interactive.resumed == 0


async def test_what_streams_still_have_to_come_is_known_by_instance_until_they_end() -> None:
    seen: list[dict[int, tuple[str, int]]] = []

    async def watched() -> AsyncIterator[Any]:
        for piece in (chunk(0), chunk(1), chunk(1, attempts=2)):
            yield piece
            seen.append(dict(traffic.to_come))
        yield chunk(1, attempts=2)

    figures = Figures(ttft_slo_ms=5000, itl_slo_ms=5000)
    traffic = Traffic(FakeClient(watched), "toy", Plan(ASKS[:1], ()), figures)  # type: ignore[arg-type]
    await traffic.run(30.0)

    assert seen == [{}, {0: ("i-1", 2)}, {0: ("i-2", 1)}]
    assert traffic.to_come == {}


async def test_a_stream_that_is_cut_has_failed() -> None:
    figures, _ = await run(cut)

    assert figures.interactive.failed == len(figures.errors) == len(ASKS)
    assert figures.interactive.met == 0


async def test_a_gap_in_the_tokens_is_an_error() -> None:
    figures, _ = await run(gap)

    assert "PROTOCOLERROR: token 2 is missing" in figures.errors


async def test_an_answer_that_is_too_short_is_an_error() -> None:
    figures, _ = await run(short)

    assert set(figures.errors) == {"asked for 3 tokens and got 2"}


async def test_what_does_not_end_in_time_is_an_error_and_has_missed() -> None:
    figures, _ = await run(never, settle_s=0.05)

    assert figures.interactive.outstanding == len(ASKS)
    assert "not everything had ended" in figures.errors[0]


async def test_a_batch_is_handed_in_whole_and_its_ends_are_counted() -> None:
    items = (Ask(0.0, 7, 4), Ask(0.0, 9, 5), Ask(0.0, 3, 6), Ask(0.0, 3, 6))
    end = BatchProgress(succeeded=3, late=1, expired=1)
    figures, client = await run(whole, Plan((), (Backlog(0.0, 60.0, items),)), end)

    ((sent, deadline_s),) = client.batch.submitted
    assert deadline_s == 60.0
    assert [(len(item["prompt_token_ids"]), item["max_tokens"]) for item in sent] == [
        (ask.prompt_tokens, ask.output_tokens) for ask in items
    ]
    counts = figures.batches
    assert (counts.items, counts.succeeded, counts.late, counts.failed) == (4, 3, 1, 1)
    assert figures.errors == ["1 items of a batch did not succeed"]


async def test_a_batch_that_is_lost_has_failed_whole() -> None:
    figures, _ = await run(
        whole, Plan((), (Backlog(0.0, 60.0, (Ask(0.0, 1, 1),) * 3),)), BatchNotFound("no batch b")
    )

    assert figures.batches.failed == 3
    assert "no batch b" in figures.errors[0]


def test_prompts_have_the_length_they_should_and_begin_unlike_each_other() -> None:
    made = [prompt(number, 40) for number in range(400)]

    assert {len(ids) for ids in made} == {40}
    assert len({ids[0] for ids in made}) == 400
