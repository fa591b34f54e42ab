"""Preemption on command, and the death of the engine core, on one engine that recomputes everything."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from services.worker.engines.base import EngineDeadError
from services.worker.engines.vllm import VllmEngine
from tests.conformance.engine_reading import GREEDY, Reading, drain, idle, make_request
from tests.support.wait import eventually
from tests.vllm.support import engine_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAMS = 6
TOKENS = 240
PREEMPTIONS = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(random_llama: Path) -> AsyncIterator[tuple[VllmEngine, int]]:
    """The engine and the id of its core process."""
    before = set(psutil.Process().children())
    # Without prefix caching a resumed request computes all of its KV cache again.
    config = engine_config(random_llama, engine_args={"enable_prefix_caching": False})
    engine = await VllmEngine.start(config)
    (core,) = [
        child
        for child in set(psutil.Process().children()) - before
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    yield engine, core.pid
    await engine.close()


@pytest.fixture(scope="module")
def engine(started: tuple[VllmEngine, int]) -> VllmEngine:
    return started[0]


async def generate_all(engine: VllmEngine, disturb: random.Random | None) -> list[Reading]:
    """Runs the streams side by side; `disturb` picks when, and whom, to preempt."""
    names = [f"stream-{index}" for index in range(STREAMS)]
    readings = {name: Reading() for name in names}
    countdown = disturb.randint(1, 6) if disturb else 0

    async def read(name: str, prompt: str) -> None:
        nonlocal countdown
        request = make_request(engine, prompt, request_id=name, max_tokens=TOKENS, **GREEDY)
        async for output in engine.generate(request):
            readings[name].add(output)
            countdown -= 1
            if disturb and countdown == 0:
                await engine.preempt(disturb.sample(names, disturb.randint(1, 2)))
                countdown = disturb.randint(1, 6)

    await asyncio.gather(*(read(name, f"A tale of {name}, told again.") for name in names))
    return [readings[name] for name in names]


async def test_200_preemptions_at_random_steps_leave_greedy_output_as_it_was(engine: VllmEngine) -> None:
    undisturbed = await generate_all(engine, None)
    assert len({tuple(reading.only.tokens) for reading in undisturbed}) == STREAMS
    assert sum(reading.outputs[-1].preemptions for reading in undisturbed) == 0
    source, preemptions = random.Random(11), 0
    while preemptions < PREEMPTIONS:
        disturbed = await generate_all(engine, source)
        preemptions += sum(reading.outputs[-1].preemptions for reading in disturbed)
        for calm, shaken in zip(undisturbed, disturbed, strict=True):
            assert len(shaken.only.tokens) == TOKENS
            assert (shaken.only.tokens, shaken.only.text) == (calm.only.tokens, calm.only.text)


async def test_an_urgent_request_takes_the_slot_of_the_one_preempted(engine: VllmEngine) -> None:
    await engine.set_limits(batch_size=1)
    batch = make_request(engine, "batch", max_tokens=900, priority=10, **GREEDY)
    stream, reading = engine.generate(batch), Reading()
    reading.add(await anext(stream))
    urgent = asyncio.create_task(
        drain(engine.generate(make_request(engine, "urgent", max_tokens=5, priority=-10, **GREEDY)))
    )
    await eventually(lambda: engine.stats().waiting == 1)
    assert list(await engine.preempt([batch.request_id])) == [batch.request_id]
    last_urgent = (await urgent).outputs[-1].time
    await drain(stream, reading)
    assert len(reading.only.tokens) == 900
    assert reading.outputs[-1].time > last_urgent, "the batch request resumed afterwards"
    await engine.set_limits(batch_size=engine.info.max_batch_size)


async def test_preempting_one_request_preempts_all_its_choices(engine: VllmEngine) -> None:
    request = make_request(engine, n=2, max_tokens=300, temperature=1.0, seed=3, ignore_eos=True)
    stream, reading, before = engine.generate(request), Reading(), engine.stats().preemptions
    reading.add(await anext(stream))
    await eventually(lambda: engine.stats().running == 2)
    assert list(await engine.preempt([request.request_id])) == [request.request_id]
    await drain(stream, reading)
    assert reading.outputs[-1].preemptions == 1
    assert engine.stats().preemptions == before + 2
    assert [len(choice.tokens) for choice in reading.choices.values()] == [300, 300]


async def test_the_death_of_the_core_is_a_typed_error_at_once(started: tuple[VllmEngine, int]) -> None:
    """Last in this module: it leaves the engine dead."""
    engine, core_pid = started
    await idle(engine)
    watch = asyncio.create_task(engine.wait_dead())
    stream = engine.generate(make_request(engine, max_tokens=1500, **GREEDY))
    await anext(stream)
    os.kill(core_pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        with pytest.raises(EngineDeadError):
            await drain(stream)
        assert str(core_pid) in await watch
        with pytest.raises(EngineDeadError):
            await drain(engine.generate(make_request(engine, max_tokens=4)))
        with pytest.raises(EngineDeadError):
            await engine.set_limits(batch_size=1)
        with pytest.raises(EngineDeadError):
            await engine.preempt(["anybody"])
