"""The soak test's engine: the sim engine's answers, a core that can die or freeze, GPUs that can be held."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineConfig, EngineDeadError, EngineLoadError, EngineRequest
from tests.soak.engine import CONFLICTS, GPUS, NODE, CoredEngine
from tests.soak.expected import Oracle
from tests.soak.until import until


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(GPUS, str(tmp_path))
    monkeypatch.setenv(NODE, "node-0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return tmp_path


def config(instance_id: str = "a") -> EngineConfig:
    return EngineConfig(
        instance_id=instance_id,
        model="m",
        weights="",
        revision="",
        gpus=2,
        max_batch_size=4,
        batch_size=4,
        step_token_budget=0,
        chat_template="",
        engine_args={"profile": "toy", "load_time_s": 0},
    )


@pytest.fixture
async def engine() -> AsyncIterator[CoredEngine]:
    engine = await CoredEngine.start(config())
    yield engine
    await engine.close()


def asked(engine: CoredEngine, tokens: int) -> EngineRequest:
    request = pb.GenerateRequest(prompt="tell me", sampling={"max_tokens": tokens, "ignore_eos": True})
    request.sampling.temperature = 0.0
    return EngineRequest("r", engine.tokenize(request), request.sampling)


async def tokens(engine: CoredEngine, count: int) -> list[int]:
    found: list[int] = []
    async for output in engine.generate(asked(engine, count)):
        found += [token for delta in output.deltas for token in delta.token_ids]
    return found


def core_pid(engine: CoredEngine) -> int:
    assert engine._core is not None
    return engine._core.pid


async def test_it_writes_what_the_oracle_foretells(engine: CoredEngine) -> None:
    async with Oracle(lambda model, version: {"profile": "toy"}) as oracle:
        answer = await oracle.answer(
            {"model": "m", "prompt": "tell me", "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
        )
    assert await tokens(engine, 12) == list(answer.choices[0].token_ids)
    assert (answer.choices[0].finish_reason, len(answer.choices[0].text_ends)) == ("length", 12)


async def test_a_killed_core_is_the_engines_death_also_when_idle(engine: CoredEngine) -> None:
    os.kill(core_pid(engine), signal.SIGKILL)
    assert "has exited" in await engine.wait_dead()
    with pytest.raises(EngineDeadError):
        await tokens(engine, 1)


async def test_a_frozen_core_freezes_the_engine_until_it_goes_on(engine: CoredEngine) -> None:
    os.kill(core_pid(engine), signal.SIGSTOP)
    running = asyncio.create_task(tokens(engine, 3))
    done, _ = await asyncio.wait({running}, timeout=0.2)
    os.kill(core_pid(engine), signal.SIGCONT)
    assert not done
    assert len(await running) == 3


async def test_a_held_gpu_is_refused_and_written_down(engine: CoredEngine, gpus: Path) -> None:
    with pytest.raises(EngineLoadError, match="GPU 0 of node-0 is held by a pid"):
        await CoredEngine.start(config("b"))
    [line] = (gpus / CONFLICTS).read_text().splitlines()
    assert json.loads(line)["claimant"].startswith("b pid")


async def test_a_gpu_is_free_when_the_last_process_is_gone_and_not_before(gpus: Path) -> None:
    first = await CoredEngine.start(config())
    # What a worker that was killed leaves behind: a core that still holds the descriptors.
    assert first._core is not None
    while first._core.held:
        os.close(first._core.held.pop())
    with pytest.raises(EngineLoadError):
        await CoredEngine.start(config("b"))
    await first.close()

    async def start() -> CoredEngine | None:
        return await CoredEngine.start(config("c"))

    second = await until(start, 5.0)
    assert second is not None
    await second.close()
