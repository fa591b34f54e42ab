"""The control socket commands a worker; the network may only watch."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.internal.v1 import worker_pb2 as wpb
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.worker_process import (
    WorkerProcess,
    failure,
    read_all,
    request,
    slots,
    violated_fields,
    worker_process,
)

SPEC: dict[str, Any] = {
    "name": "toy",
    "engine": "sim",
    "maxBatchSize": 4,
    "engineArgs": {"load_time_s": 0},
    "sloDefaults": {"interactive": {"itlMs": 80}, "batch": {"itlMs": 900}},
}
LONG = {"max_tokens": 4000}


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path, SPEC) as process:
        await process.until()
        yield process


async def serving(worker: WorkerProcess) -> bool:
    stub = health_pb2_grpc.HealthStub(worker.network_channel)
    check = health_pb2.HealthCheckRequest(service="chiron.v1.InferenceService")
    return (await stub.Check(check)).status == health_pb2.HealthCheckResponse.SERVING


async def test_the_network_may_only_watch(worker: WorkerProcess) -> None:
    calls: list[Any] = [
        worker.network.WatchStatistics(wpb.WatchStatisticsRequest()),
        worker.network.SetLimits(wpb.SetLimitsRequest(batch_size=1)),
        worker.network.SetWorkerRole(wpb.SetWorkerRoleRequest(role=types_pb2.ROLE_BATCH)),
        worker.network.Preempt(wpb.PreemptRequest(request_ids=["x"])),
        worker.network.Drain(wpb.DrainRequest()),
        worker.network.Sleep(wpb.SleepRequest(level=1)),
        worker.network.Wake(wpb.WakeRequest()),
    ]
    for call in calls:
        error = await failure(call)
        assert (error.code(), reason_of(error)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "NOT_CONTROL_SOCKET",
        )
    load = await worker.load_when(lambda load: True)
    assert (load.batch_size, load.role, load.state) == (
        4,
        types_pb2.ROLE_MIXED,
        types_pb2.INSTANCE_STATE_READY,
    )


async def test_only_the_owner_can_open_the_control_socket(worker: WorkerProcess) -> None:
    assert stat.S_IMODE(worker.socket.stat().st_mode) == 0o600


async def test_limits_are_set_and_reported(worker: WorkerProcess) -> None:
    answer = await worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=2))
    assert answer.batch_size == 2
    budget = answer.step_token_budget
    answer = await worker.control.SetLimits(wpb.SetLimitsRequest(step_token_budget=budget - 1))
    assert (answer.batch_size, answer.step_token_budget) == (2, budget - 1)
    assert (await worker.load_when(lambda load: load.batch_size == 2)).batch_size == 2
    for field, limits in (
        ("batch_size", wpb.SetLimitsRequest(batch_size=5)),
        ("step_token_budget", wpb.SetLimitsRequest(step_token_budget=10_000_000)),
    ):
        assert violated_fields(await failure(worker.control.SetLimits(limits))) == [field]


async def test_a_role_turns_the_other_class_away(worker: WorkerProcess) -> None:
    running = worker.inference.Generate(request(request_class=types_pb2.REQUEST_CLASS_BATCH, sampling=LONG))
    await running.read()
    await worker.control.SetWorkerRole(wpb.SetWorkerRoleRequest(role=types_pb2.ROLE_INTERACTIVE))
    await worker.load_when(lambda load: load.role == types_pb2.ROLE_INTERACTIVE)
    error = await failure(worker.inference.Generate(request(request_class=types_pb2.REQUEST_CLASS_BATCH)))
    assert reason_of(error) == "RETRY_ELSEWHERE"
    assert await read_all(worker.inference.Generate(request()))
    assert (await running.read()).deltas, "a new role ends nothing that runs"
    running.cancel()
    error = await failure(worker.control.SetWorkerRole(wpb.SetWorkerRoleRequest()))
    assert violated_fields(error) == ["role"]


async def test_preempted_requests_wait_and_finish_as_if_undisturbed(worker: WorkerProcess) -> None:
    sampling = {"max_tokens": 300}
    expected = [
        t for d in await read_all(worker.inference.Generate(request(sampling=sampling))) for t in d.token_ids
    ]
    call = worker.inference.Generate(request(request_id="victim", sampling=sampling))
    first = await call.read()
    answer = await worker.control.Preempt(wpb.PreemptRequest(request_ids=["victim", "nobody"]))
    assert list(answer.preempted_request_ids) == ["victim"]
    rest = await read_all(call)
    assert [t for d in [*first.deltas, *rest] for t in d.token_ids] == expected
    assert rest[-1].timing.preemptions == 1


async def test_sleep_is_refused_while_a_request_is_live(worker: WorkerProcess) -> None:
    call = worker.inference.Generate(request(sampling=LONG))
    await call.read()
    error = await failure(worker.control.Sleep(wpb.SleepRequest(level=1)))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "BUSY")
    call.cancel()


async def test_a_sleeping_worker_sends_elsewhere_and_serves_after_waking(worker: WorkerProcess) -> None:
    assert await serving(worker)
    assert violated_fields(await failure(worker.control.Sleep(wpb.SleepRequest(level=3)))) == ["level"]
    await worker.control.Sleep(wpb.SleepRequest(level=1))
    await worker.until(types_pb2.INSTANCE_STATE_SLEEPING)
    assert not await serving(worker)
    assert reason_of(await failure(worker.inference.Generate(request()))) == "RETRY_ELSEWHERE"
    await worker.control.Wake(wpb.WakeRequest())
    await worker.until(types_pb2.INSTANCE_STATE_READY)
    assert await read_all(worker.inference.Generate(request()))


async def test_drain_lets_requests_finish_and_takes_no_more(worker: WorkerProcess) -> None:
    call = worker.inference.Generate(request(sampling={"max_tokens": 200}))
    await call.read()
    drain = worker.control.Drain(wpb.DrainRequest())
    await worker.until(types_pb2.INSTANCE_STATE_DRAINING)
    assert reason_of(await failure(worker.inference.Generate(request()))) == "RETRY_ELSEWHERE"
    assert (await read_all(call))[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert (await drain).aborted == 0


async def test_a_drain_out_of_time_cuts_streams_off_with_a_typed_error(worker: WorkerProcess) -> None:
    await worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=1))
    running = worker.inference.Generate(request(sampling=LONG))
    await running.read()
    waiting = worker.inference.Generate(request(sampling=LONG))
    await worker.load_when(lambda load: slots(load.waiting) == 1)
    assert (await worker.control.Drain(wpb.DrainRequest(timeout_s=0.1))).aborted == 2
    assert reason_of(await failure(running)) == "STREAM_INTERRUPTED"
    assert reason_of(await failure(waiting)) == "RETRY_ELSEWHERE"


async def test_statistics_tell_what_happened_in_the_interval(worker: WorkerProcess) -> None:
    watch = worker.control.WatchStatistics(wpb.WatchStatisticsRequest(interval_ms=60_000))
    first = await watch.read()
    assert (first.instance_id, first.incarnation, first.address) == ("toy-000001", 7, worker.address)
    first_prompt = pb.TokenIds(ids=[301] * 6)
    await read_all(
        worker.inference.Generate(request(prompt_token_ids=first_prompt, sampling={"max_tokens": 30}))
    )
    running = worker.inference.Generate(
        request(
            prompt_token_ids=pb.TokenIds(ids=[300] * 5),
            request_class=types_pb2.REQUEST_CLASS_BATCH,
            sampling=LONG,
        )
    )
    await running.read()
    await running.read()
    # A change of the limits ends the interval at once.
    await worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=1))
    second = await watch.read()
    assert (second.finished.interactive, second.finished.batch) == (1, 0)
    assert second.output_tokens >= 32
    assert second.prompt_tokens == 6 + 5, "both prompts"
    assert second.steps >= 32
    assert (second.draft_tokens, second.accepted_tokens) == (0, 0)
    assert second.load.step_tokens == pytest.approx((second.output_tokens + 6 + 5) / second.steps)
    assert second.load.itl_mean_ms > 0
    assert second.load.itl_p95_ms > 0
    assert second.tightest_itl_slo_ms == 900
    assert slots(second.load.running) == 1
    assert second.load.batch_size == 1
    assert 0 < second.load.kv_usage < 1
    running.cancel()
    watch.cancel()


async def test_a_full_worker_is_saturated(worker: WorkerProcess) -> None:
    await worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=1))
    running = worker.inference.Generate(request(sampling=LONG))
    await running.read()
    watch = worker.control.WatchStatistics(wpb.WatchStatisticsRequest(interval_ms=50))
    await watch.read()
    assert (await watch.read()).saturated
    running.cancel()
    await worker.idle()
    await watch.read()
    assert not (await watch.read()).saturated
    watch.cancel()


async def test_a_bad_interval_is_named(worker: WorkerProcess) -> None:
    error = await failure(worker.control.WatchStatistics(wpb.WatchStatisticsRequest(interval_ms=5)))
    assert violated_fields(error) == ["interval_ms"]


async def test_routers_hear_what_a_worker_has_done(worker: WorkerProcess) -> None:
    call = worker.inference.Generate(request(sampling={"max_tokens": 7, "ignore_eos": True}))
    assert await read_all(call)
    load = await worker.load_when(lambda load: load.done.finished_interactive.requests == 1)
    done = load.done
    assert (done.output_tokens, done.finished_interactive.output_tokens) == (7, 7)
    assert 0 < done.finished_interactive.start_ms < done.finished_interactive.service_ms
    assert done.finished_batch.requests == 0
