"""The sim engine keeps the model's time: by an injected clock, so that nothing here takes any."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import pytest

from chiron.engine import get_profile
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import (
    EngineConfig,
    EngineDeadError,
    EngineLoadError,
    EngineOutput,
    EngineRequest,
)
from services.worker.engines.sim import SimEngine
from services.worker.engines.sim.settings import SimSettings, parse_settings

STEP_S = get_profile("toy").step_time_ms[0][1] / 1e3


class LateClock:
    """Time passes only where the engine sleeps, and every timer rings `late_s` too late."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.time = 100.0
        self.late_s = late_s

    def now(self) -> float:
        return self.time

    async def sleep_until(self, instant: float) -> None:
        self.time = max(self.time, instant) + self.late_s
        await asyncio.sleep(0)


async def start(clock: LateClock, **engine_args: Any) -> SimEngine:
    return await SimEngine.start(
        EngineConfig("i", "m", "", "", 1, 8, 8, 0, "", engine_args=engine_args), clock
    )


async def outputs(engine: SimEngine, tokens: int) -> list[EngineOutput]:
    sampling = pb.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return [output async for output in engine.generate(EngineRequest("r", [300] * 4, sampling))]


def times(results: list[EngineOutput]) -> list[float]:
    return [output.time for output in results]


async def test_loading_takes_the_profiles_time_stretched_by_the_scale() -> None:
    clock = LateClock()
    engine = await start(clock, time_scale=3.0)
    assert clock.time - 100.0 == pytest.approx(3 * get_profile("toy").load_s)
    await engine.close()


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
async def test_steps_take_the_models_time_stretched_by_the_scale(scale: float) -> None:
    engine = await start(LateClock(), time_scale=scale)
    came = times(await outputs(engine, 20))
    # The toy profile's step is flat but for a hundredth of a millisecond a token and the KV cache's reading.
    assert came[-1] - came[0] == pytest.approx(19 * STEP_S * scale, rel=0.05)
    await engine.close()


async def test_late_timers_do_not_add_up() -> None:
    punctual, late = await start(LateClock()), await start(LateClock(late_s=STEP_S / 2))
    exact, delayed = times(await outputs(punctual, 200)), times(await outputs(late, 200))
    assert delayed[-1] - delayed[0] == pytest.approx(exact[-1] - exact[0], abs=STEP_S)
    await punctual.close()
    await late.close()


async def test_a_host_that_cannot_keep_up_shows_in_the_times() -> None:
    engine = await start(LateClock(late_s=1.0))
    came = times(await outputs(engine, 5))
    assert came[-1] - came[0] > 4 * 0.9
    await engine.close()


async def test_waking_takes_time_too() -> None:
    clock = LateClock()
    engine = await start(clock, time_scale=2.0)
    await engine.sleep(2)
    before = clock.time
    await engine.wake()
    assert clock.time - before == pytest.approx(2 * get_profile("toy").wake_s[1])
    await engine.close()


async def test_speculation_yields_several_tokens_a_step() -> None:
    engine = await start(LateClock(), draft_tokens=3, acceptance_rate=1.0)
    results = await outputs(engine, 41)
    assert engine.stats().steps == 1 + 10, "a prefill, then four tokens a step"
    assert sum(len(delta.token_ids) for output in results for delta in output.deltas) == 41
    await engine.close()


async def test_a_request_as_long_as_the_context_fits() -> None:
    engine = await start(LateClock(), kv_capacity_tokens=160, draft_tokens=3)
    most = engine.info.max_context_tokens
    assert most == 157
    await outputs(engine, most - 4)
    await engine.close()


async def test_a_closed_engine_ends_its_streams() -> None:
    engine = await start(LateClock())
    stream = engine.generate(EngineRequest("r", [300], pb.SamplingParams(max_tokens=4000, ignore_eos=True)))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineDeadError):
        _ = [output async for output in stream]


@pytest.mark.parametrize(
    ("engine_args", "words"),
    [
        ({"speed": 3}, "engine_args.speed: unknown"),
        ({"profile": "gpt-9"}, "engine_args.profile: unknown engine profile 'gpt-9'"),
        ({"time_scale": 0}, "engine_args.time_scale"),
        ({"time_scale": 11}, "engine_args.time_scale"),
        ({"time_scale": True}, "engine_args.time_scale"),
        ({"seed": "x"}, "engine_args.seed"),
        ({"kv_capacity_tokens": -1}, "engine_args.kv_capacity_tokens"),
        ({"kv_capacity_tokens": 3}, "engine_args.kv_capacity_tokens"),
        ({"max_step_token_budget": 0}, "engine_args.max_step_token_budget"),
        ({"draft_tokens": 2, "acceptance_rate": 1.5}, "engine_args.acceptance_rate"),
        ({"kv_capacity_tokens": 10**20}, "engine_args.kv_capacity_tokens: must be 0 to 1000000000, not 1000"),
        ({"max_context_tokens": 10**20}, "engine_args.max_context_tokens: must be 0 to 1000000000, not 1000"),
        ({"max_step_token_budget": 10**20}, "engine_args.max_step_token_budget: must be 1 to 1000000000"),
        ({"draft_tokens": 10**9}, "engine_args.draft_tokens: must be 0 to 1000, not 1000000000"),
        ({"acceptance_rate": -0.1}, "engine_args.acceptance_rate: must be 0 to 1, not -0.1"),
        ({"load_time_s": 10**9}, "engine_args.load_time_s: must be -1 to 86400"),
        ({"load_time_s": math.nan}, "engine_args.load_time_s: must be -1 to 86400, not nan"),
        ({"time_scale": math.inf}, "engine_args.time_scale: must be above 0 and at most 10, not inf"),
        ({"seed": 2**53 + 1}, f"engine_args.seed: must be -{2**53} to {2**53}"),
        ({"fail_load": "out of luck"}, "out of luck"),
    ],
)
async def test_a_bad_argument_is_named(engine_args: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineLoadError) as caught:
        await start(LateClock(), **engine_args)
    assert words in str(caught.value)


def test_every_number_has_a_bound_that_is_named() -> None:
    numbers = [field.name for field in dataclasses.fields(SimSettings) if type(field.default) in (int, float)]
    assert len(numbers) >= 8
    for name in numbers:
        for value in (10**30, -(10**30)):
            with pytest.raises(EngineLoadError, match=rf"engine_args\.{name}: must be .*[0-9].*, not "):
                parse_settings({name: value})
