from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from chiron.cli.demo.figures import Figures
from chiron.cli.demo.traffic import Load, Traffic
from chiron.client import ProtocolError, StreamInterrupted
from tests.support.wait import eventually

LOAD = Load("batch", rate_per_s=400.0, prompt_words=(2, 2), output_tokens=(3, 3), most_outstanding=1000)


class FakeClient:
    """Answers each request as the test says; remembers what was asked."""

    def __init__(self, answer: Callable[[], AsyncIterator[Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer = answer

    def generate(self, **request: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        return self._answer()


def chunk(tokens: int, attempts: int = 1) -> SimpleNamespace:
    return SimpleNamespace(token_ids=(1,) * tokens, attempts=attempts)


async def run(
    answer: Callable[[], AsyncIterator[Any]], *, load: Load = LOAD, seed: int = 0
) -> tuple[Figures, FakeClient]:
    figures, client = Figures(), FakeClient(answer)
    traffic = Traffic(client, "toy", load, figures, seed)  # type: ignore[arg-type]
    await traffic.run(0.1)
    assert client.asked
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


async def test_whole_answers_count_as_finished_and_second_attempts_as_retried() -> None:
    figures, client = await run(whole)
    count = figures.counts["batch"]

    assert count.requests == count.finished == count.retried == len(client.asked)
    assert figures.tokens == 3 * count.requests
    assert len(figures.ttft_ms["batch"]) == count.requests
    assert figures.errors == []


async def test_the_seed_alone_decides_what_is_asked() -> None:
    _, first = await run(whole, seed=5)
    _, again = await run(whole, seed=5)
    _, other = await run(whole, seed=6)

    assert [request["prompt"] for request in first.asked] == [request["prompt"] for request in again.asked]
    assert [request["prompt"] for request in first.asked] != [request["prompt"] for request in other.asked]


async def test_a_stream_that_is_cut_is_interrupted_and_an_error() -> None:
    figures, client = await run(cut)
    count = figures.counts["batch"]

    assert count.failed == count.interrupted == count.requests == len(figures.errors) == len(client.asked)
    assert set(figures.errors) == {"interrupted: gone"}


async def test_a_stream_whose_attempts_grow_after_its_first_token_was_resumed() -> None:
    assert (await run(whole))[0].total("resumed") > 0
    assert (await run(second_attempt))[0].total("resumed") == 0


async def test_a_gap_in_the_tokens_is_an_error() -> None:
    figures, _ = await run(gap)

    assert figures.counts["batch"].interrupted == 0
    assert figures.counts["batch"].failed == figures.counts["batch"].requests
    assert "PROTOCOLERROR: token 2 is missing" in figures.errors


async def test_an_answer_that_is_too_short_is_an_error() -> None:
    figures, _ = await run(short)

    assert set(figures.errors) == {"asked for 3 tokens and got 2"}


async def test_arrivals_beyond_the_bound_are_shed_and_counted() -> None:
    release = asyncio.Event()

    async def held() -> AsyncIterator[Any]:
        await release.wait()
        yield chunk(3)

    load = Load("batch", 400.0, (2, 2), (3, 3), most_outstanding=2)
    figures, client = Figures(), FakeClient(held)
    traffic = Traffic(client, "toy", load, figures, 0)  # type: ignore[arg-type]
    running = asyncio.create_task(traffic.run(0.1))
    await eventually(lambda: figures.counts["batch"].shed, what="an arrival beyond the bound")

    assert len(client.asked) == figures.counts["batch"].requests == 2

    release.set()
    await running
    assert figures.counts["batch"].outstanding == 0
