"""What vLLM tells of its prefix cache, and what the worker and the router make of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from services.worker.engines.base import EngineRequest
from services.worker.engines.vllm import VllmEngine
from tests.conformance.engine_reading import GREEDY, drain, make_request
from tests.support.wait import eventually
from tests.vllm.support import engine_config

pytestmark = pytest.mark.asyncio(loop_scope="module")
BLOCK = 32
"""Tokens of a block, in the usual configuration here."""


class Told:
    """An engine with room for 16 blocks, and what it has told of those that went."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.gone: set[Hashable] = set()
        self.cleared = 0
        self.block_tokens = engine.follow_cache(self.hear)

    def hear(self, blocks: Sequence[Hashable] | None) -> None:
        if blocks is None:
            self.cleared += 1
        else:
            self.gone |= set(blocks)

    def request(self, name: str, first: int, tokens: int = 100, **more: object) -> EngineRequest:
        request = make_request(self.engine, "x", request_id=name, max_tokens=4, **GREEDY)
        ids = [(first + index) % 250 + 5 for index in range(tokens)]
        return EngineRequest(name, ids, request.sampling, **more)  # type: ignore[arg-type]

    async def cached(self, request: EngineRequest) -> int:
        """Runs a request; the prompt tokens that were in the cache."""
        outputs = [output async for output in self.engine.generate(request)]
        return outputs[-1].cached_prompt_tokens


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(random_llama: Path) -> AsyncIterator[Told]:
    config = engine_config(random_llama, engine_args={"num_gpu_blocks_override": 17, "max_model_len": 512})
    engine = await VllmEngine.start(config)
    yield Told(engine)
    await engine.close()


async def test_the_second_turn_finds_the_first_in_the_cache(told: Told) -> None:
    assert told.block_tokens == BLOCK
    first = told.request("turn-1", 0)
    assert await told.cached(first) == 0
    blocks = told.engine.prompt_blocks(first)
    assert len(blocks) == len(set(blocks)) == 3
    second = told.request("turn-2", 0, tokens=150)
    assert await told.cached(second) == 96
    assert told.engine.prompt_blocks(second)[:3] == blocks


async def test_another_tenant_finds_nothing(told: Told) -> None:
    first, salted = told.request("plain", 17), told.request("salted", 17, cache_salt="grace")
    assert await told.cached(first) == 0
    assert await told.cached(salted) == 0
    assert await told.cached(told.request("salted again", 17, cache_salt="grace")) == 96
    assert not set(told.engine.prompt_blocks(first)) & set(told.engine.prompt_blocks(salted))


async def test_what_is_evicted_is_told_by_name(told: Told) -> None:
    victims = [told.request("old", 40), told.request("old salted", 40, cache_salt="ada")]
    for victim in victims:
        await told.cached(victim)
    names = {name for victim in victims for name in told.engine.prompt_blocks(victim)}
    told.gone.clear()
    for number in range(6):
        await told.cached(told.request(f"new-{number}", 60 + 11 * number))
    await eventually(lambda: names <= told.gone, what="the blocks of both victims have gone")
    assert await told.cached(told.request("back", 40)) == 0


async def test_a_cache_that_is_emptied_is_told_as_a_whole(told: Told) -> None:
    before = told.cleared
    await told.engine._llm.reset_prefix_cache()
    # Its core publishes with its next step.
    await told.cached(told.request("after", 90))
    await eventually(lambda: told.cleared > before, what="the cache was emptied")


async def test_events_that_go_elsewhere_by_the_spec_are_left_alone(random_llama: Path) -> None:
    elsewhere = {"enable_kv_cache_events": False}
    engine = await VllmEngine.start(engine_config(random_llama, engine_args={"kv_events_config": elsewhere}))
    try:
        assert engine.follow_cache(lambda _: None) == 0
        await drain(engine.generate(make_request(engine, "Hello.", request_id="r", max_tokens=2, **GREEDY)))
    finally:
        await engine.close()
