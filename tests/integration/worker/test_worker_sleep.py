"""A worker that is told to sleep: what runs finishes first, and nothing is left half-way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chiron.internal.v1 import worker_pb2 as wpb
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.worker_process import (
    WorkerProcess,
    failure,
    read_all,
    request,
    violated_fields,
    worker_process,
)

# Ten times as slow as it is: half a second to sleep and to wake.
SPEC: dict[str, Any] = {
    "name": "toy",
    "engine": "sim",
    "maxBatchSize": 4,
    "engineArgs": {"load_time_s": 0, "time_scale": 10},
}
SLEEPING, READY = types_pb2.INSTANCE_STATE_SLEEPING, types_pb2.INSTANCE_STATE_READY
DRAINING, LOADING = types_pb2.INSTANCE_STATE_DRAINING, types_pb2.INSTANCE_STATE_LOADING
SHORT, LONG = {"max_tokens": 40}, {"max_tokens": 4000}


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path, SPEC) as process:
        await process.until()
        yield process


def sleep(timeout_s: float | None = 30.0) -> wpb.SleepRequest:
    return wpb.SleepRequest(level=1, drain_timeout_s=timeout_s)


async def test_what_runs_finishes_before_the_worker_sleeps_and_newcomers_go_elsewhere(
    worker: WorkerProcess,
) -> None:
    running = worker.inference.Generate(request(sampling=SHORT))
    await running.read()
    falling = worker.control.Sleep(sleep())
    await worker.until(DRAINING)
    assert reason_of(await failure(worker.inference.Generate(request()))) == "RETRY_ELSEWHERE"
    assert (await read_all(running))[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert (await falling).aborted == 0
    await worker.until(SLEEPING)
    assert (await worker.control.Sleep(sleep())).aborted == 0, "it sleeps already"
    await worker.control.Wake(wpb.WakeRequest())
    assert (await read_all(worker.inference.Generate(request(sampling=SHORT))))[-1].finish_reason


async def test_a_worker_whose_sleep_is_called_off_while_it_drains_serves_on(worker: WorkerProcess) -> None:
    running = worker.inference.Generate(request(sampling=LONG))
    await running.read()
    falling = worker.control.Sleep(sleep())
    await worker.until(DRAINING)
    falling.cancel()
    await worker.until(READY)
    assert await read_all(worker.inference.Generate(request(sampling=SHORT)))
    assert (await running.read()).deltas, "nothing was cut"
    running.cancel()


async def test_what_is_left_when_the_time_is_up_is_handed_over(worker: WorkerProcess) -> None:
    running = worker.inference.Generate(request(sampling=LONG))
    await running.read()
    assert (await worker.control.Sleep(sleep(0.1))).aborted == 1
    assert reason_of(await failure(running)) == "STREAM_INTERRUPTED"
    await worker.until(SLEEPING)


async def test_a_wake_that_nobody_waits_for_goes_on_and_the_next_sleep_waits_for_it(
    worker: WorkerProcess,
) -> None:
    await worker.control.Sleep(sleep(None))
    waking = worker.control.Wake(wpb.WakeRequest())
    await worker.until(LOADING)
    waking.cancel()
    # Sleep that took the worker for asleep would answer while its weights come back.
    await worker.control.Sleep(sleep())
    await worker.until(SLEEPING)
    await worker.control.Wake(wpb.WakeRequest())
    await worker.until(READY)


async def test_a_sleep_that_nobody_waits_for_any_more_comes_to_its_end(worker: WorkerProcess) -> None:
    falling = worker.control.Sleep(sleep(None))
    await worker.until(DRAINING)
    falling.cancel()
    await worker.until(SLEEPING)


async def test_a_draining_worker_does_not_sleep_and_a_bad_time_is_named(worker: WorkerProcess) -> None:
    assert violated_fields(await failure(worker.control.Sleep(sleep(-1.0)))) == ["drain_timeout_s"]
    await worker.control.Drain(wpb.DrainRequest())
    assert reason_of(await failure(worker.control.Sleep(sleep()))) == "BUSY"
