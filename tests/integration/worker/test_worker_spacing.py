"""Which requests of a worker make its messages come further apart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from tests.support.wait import eventually
from tests.support.worker_here import worker_here
from tests.support.worker_process import request

WAITING = 50
SPEC: dict[str, Any] = {
    "name": "toy",
    "engine": "sim",
    "maxBatchSize": 2,
    "engineArgs": {"load_time_s": 0, "time_scale": 4.0},
}


async def test_only_those_that_have_output_do(tmp_path: Path) -> None:
    async with worker_here(tmp_path, SPEC) as here:
        worker = here.worker
        each_s = 1 / worker.config.messages_per_s

        def ask(name: str) -> Any:
            fields = {"max_tokens": 4_000, "ignore_eos": True}
            return here.inference.Generate(request(request_id=name, sampling=fields))

        running = [ask(f"runs-{index}") for index in range(2)]
        for call in running:
            message = await call.read()
            assert isinstance(message, pb.GenerateResponse)
            assert len(message.deltas) == 1
        waiting = [ask(f"waits-{index}") for index in range(WAITING)]
        reading = [asyncio.create_task(call.read()) for call in waiting]
        await eventually(lambda: len(worker.live) == 2 + WAITING)
        assert worker.spacing.interval_s(0.0) == pytest.approx(2 * each_s)
        running[0].cancel()
        await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        await eventually(lambda: worker.spacing.interval_s(0.0) == pytest.approx(2 * each_s))
        for call in (*running, *waiting):
            call.cancel()
        await eventually(lambda: not len(worker.live))
        await asyncio.gather(*reading, return_exceptions=True)
        assert worker.spacing.interval_s(0.0) == 0
