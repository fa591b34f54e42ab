"""What every engine must do on command: limits, priorities, preemption, sleep, figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from services.worker.engines.base import Engine, EngineBusyError
from tests.conformance.engine_reading import (
    GREEDY,
    Reading,
    drain,
    long_prompt,
    make_request,
    occupancy,
    run,
)
from tests.support.wait import eventually


class ControlSuite:
    """Part of `EngineSuite`, which holds the fixtures."""

    async def test_priority_orders_the_waiting_queue(self, engine: Engine) -> None:
        await engine.set_limits(batch_size=1)
        holder = await _running(engine)
        order: list[str] = []

        async def note(name: str, priority: int) -> None:
            await run(engine, name, max_tokens=2, priority=priority, **GREEDY)
            order.append(name)

        waiting = [asyncio.create_task(note("patient", 10))]
        await eventually(lambda: engine.stats().waiting == 1)
        waiting.append(asyncio.create_task(note("urgent", -10)))
        await eventually(lambda: engine.stats().waiting == 2)
        await _close(holder)
        await asyncio.gather(*waiting)
        assert order == ["urgent", "patient"]

    async def test_the_queue_time_covers_the_wait_for_a_slot(self, engine: Engine) -> None:
        await engine.set_limits(batch_size=1)
        holder = await _running(engine)
        waiting = asyncio.create_task(run(engine, max_tokens=2, **GREEDY))
        await eventually(lambda: engine.stats().waiting == 1)
        seen_waiting = time.monotonic()
        still_waiting = seen_waiting
        while still_waiting <= seen_waiting:
            still_waiting = (await anext(holder)).time
        await _close(holder)
        assert (await waiting).outputs[0].queue_s >= still_waiting - seen_waiting > 0

    async def test_lowering_the_batch_size_drains_and_evicts_nobody(self, engine: Engine) -> None:
        names = [f"runner {index}" for index in range(3)]
        streams = [engine.generate(make_request(engine, name, max_tokens=200, **GREEDY)) for name in names]
        readings = [Reading() for _ in streams]
        for stream, reading in zip(streams, readings, strict=True):
            reading.add(await anext(stream))
        preempted_before = engine.stats().preemptions
        await engine.set_limits(batch_size=1)
        assert engine.stats().batch_size == 1
        late = asyncio.create_task(
            drain(engine.generate(make_request(engine, "late", max_tokens=2, **GREEDY)))
        )
        await asyncio.gather(*(drain(s, r) for s, r in zip(streams, readings, strict=True)))
        assert [len(reading.only.tokens) for reading in readings] == [200] * 3
        assert engine.stats().preemptions == preempted_before
        last_of_all = max(reading.outputs[-1].time for reading in readings)
        assert (await late).outputs[0].time > last_of_all, "the late one waited for a free slot"

    async def test_raising_the_batch_size_admits(self, engine: Engine) -> None:
        await engine.set_limits(batch_size=1)
        streams = [
            engine.generate(make_request(engine, f"r {i}", max_tokens=900, **GREEDY)) for i in range(3)
        ]
        readers = [asyncio.create_task(drain(stream)) for stream in streams]
        await eventually(lambda: occupancy(engine) == (1, 2))
        await engine.set_limits(batch_size=3)
        await eventually(lambda: occupancy(engine) == (3, 0))
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def test_the_step_token_budget_splits_a_prompt(self, engine: Engine) -> None:
        prompt = long_prompt(engine, "budget")
        await engine.set_limits(step_token_budget=64)
        assert engine.stats().step_token_budget == 64
        before = engine.stats().steps
        await run(engine, prompt, max_tokens=1, **GREEDY)
        await eventually(lambda: engine.stats().steps - before >= len(prompt) // 64)

    async def test_limits_out_of_range_are_refused_and_change_nothing(self, engine: Engine) -> None:
        info, before = engine.info, engine.stats()
        for limits in (
            {"batch_size": info.max_batch_size + 1},
            {"batch_size": -1},
            {"step_token_budget": info.max_step_token_budget + 1},
            {"step_token_budget": -1},
        ):
            with pytest.raises(ValueError, match=next(iter(limits))):
                await engine.set_limits(**limits)
        after = engine.stats()
        assert (after.batch_size, after.step_token_budget) == (before.batch_size, before.step_token_budget)

    async def test_preemption_keeps_tokens_and_output(self, engine: Engine) -> None:
        expected = (await run(engine, "preempt me", max_tokens=200, **GREEDY)).only
        request = make_request(engine, "preempt me", max_tokens=200, **GREEDY)
        stream, reading, before = engine.generate(request), Reading(), engine.stats().preemptions
        reading.add(await anext(stream))
        assert list(await engine.preempt([request.request_id, "nobody"])) == [request.request_id]
        await drain(stream, reading)
        assert (reading.only.tokens, reading.only.text) == (expected.tokens, expected.text)
        assert reading.outputs[-1].preemptions == 1
        await eventually(lambda: engine.stats().preemptions == before + 1)

    async def test_a_waiting_request_cannot_be_preempted(self, engine: Engine) -> None:
        await engine.set_limits(batch_size=1)
        holder = await _running(engine)
        request = make_request(engine, max_tokens=2, **GREEDY)
        reader = asyncio.create_task(drain(engine.generate(request)))
        await eventually(lambda: occupancy(engine) == (1, 1))
        assert list(await engine.preempt([request.request_id])) == []
        await _close(holder)
        assert (await reader).outputs[-1].preemptions == 0

    async def test_one_that_waits_before_the_preemption_gets_the_slot(self, engine: Engine) -> None:
        await engine.set_limits(batch_size=1)
        batch = make_request(engine, "batch", max_tokens=300, priority=10, **GREEDY)
        stream, reading = engine.generate(batch), Reading()
        reading.add(await anext(stream))
        reader = asyncio.create_task(drain(stream, reading))
        urgent = make_request(engine, "urgent", max_tokens=60, priority=-10, **GREEDY)
        other = asyncio.create_task(drain(engine.generate(urgent)))
        await eventually(lambda: occupancy(engine) == (1, 1))
        before = len(reading.outputs)
        assert list(await engine.preempt([batch.request_id])) == [batch.request_id]
        stats = engine.stats()
        assert (stats.running, stats.waiting) in ((0, 2), (1, 1)), "one of them waits, or both"
        last = (await other).outputs[-1].time
        in_flight = [output for output in reading.outputs[before:] if output.time <= last]
        assert len(in_flight) <= 2, "only what was under way came of it"
        await reader
        assert len(reading.only.tokens) == 300
        assert reading.outputs[-1].time > last, "it resumed afterwards"

    async def test_the_kv_cache_holds_whole_blocks(self, engine: Engine) -> None:
        assert 1 <= engine.info.kv_block_size <= engine.info.kv_capacity_tokens

    async def test_counters_only_grow_and_count_tokens(self, engine: Engine) -> None:
        before = engine.stats()
        request = make_request(engine, "count me", max_tokens=30, **GREEDY)
        seen = [before, *[engine.stats() async for _ in engine.generate(request)]]
        await eventually(lambda: engine.stats().output_tokens == before.output_tokens + 30)
        seen.append(engine.stats())
        assert seen[-1].prompt_tokens == before.prompt_tokens + len(request.prompt_token_ids)
        for name in ("steps", "output_tokens", "prompt_tokens", "cached_prompt_tokens", "preemptions"):
            values = [getattr(stats, name) for stats in seen]
            assert values == sorted(values), name
        assert seen[-1].steps > before.steps
        assert all(0 <= stats.kv_usage <= 1 for stats in seen)

    async def test_sleep_is_refused_while_busy(self, engine: Engine) -> None:
        holder = await _running(engine)
        with pytest.raises(EngineBusyError):
            await engine.sleep(1)
        await _close(holder)

    async def test_after_sleep_and_wake_the_output_is_the_same(self, engine: Engine) -> None:
        expected = (await run(engine, max_tokens=16, **GREEDY)).only.tokens
        await engine.sleep(1)
        with pytest.raises(EngineBusyError):
            await run(engine, max_tokens=16, **GREEDY)
        await engine.wake()
        assert (await run(engine, max_tokens=16, **GREEDY)).only.tokens == expected

    async def test_a_living_engine_is_not_dead(self, engine: Engine) -> None:
        watch = asyncio.create_task(engine.wait_dead())
        await run(engine, max_tokens=4, **GREEDY)
        assert not watch.done()
        watch.cancel()


async def _running(engine: Engine) -> AsyncIterator[object]:
    """A long request that runs: it has its first output and is read no further."""
    stream = engine.generate(make_request(engine, "hold a slot", max_tokens=900, **GREEDY))
    await anext(stream)
    return stream


async def _close(stream: AsyncIterator[object]) -> None:
    await stream.aclose()  # type: ignore[attr-defined]
