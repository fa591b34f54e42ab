"""How a worker process begins and ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from chiron.internal.v1 import worker_pb2 as wpb
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from services.worker.app import EXIT_ENGINE_DEAD
from tests.support.mortal_engine import LAST_WORDS
from tests.support.worker_process import (
    ROOT,
    WorkerProcess,
    failure,
    read_all,
    request,
    worker_arguments,
    worker_process,
)

SIM: dict[str, Any] = {"name": "toy", "engine": "sim", "engineArgs": {"load_time_s": 0}}
MORTAL = {**SIM, "engine": "tests.support.mortal_engine:MortalEngine"}
FAILED = types_pb2.INSTANCE_STATE_FAILED


async def test_a_worker_is_reached_at_the_host_that_it_advertises(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SIM, advertise_host="localhost") as worker:
        statistics = await worker.until()
        assert statistics.address == worker.address
        assert worker.address.startswith("localhost:")
        await worker.idle()


async def test_a_loading_worker_listens_and_sends_requests_elsewhere(tmp_path: Path) -> None:
    spec = {**SIM, "engineArgs": {"load_time_s": 3600}}
    async with worker_process(tmp_path, spec) as worker:
        statistics = await worker.until(types_pb2.INSTANCE_STATE_LOADING)
        assert statistics.address == worker.address
        error = await failure(worker.inference.Generate(request()))
        assert reason_of(error) == "RETRY_ELSEWHERE"
        assert "loading" in (error.details() or "")
        assert (
            reason_of(await failure(worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=1)))) == "BUSY"
        )
        worker.terminate()
        assert await worker.exit_status() == 0


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({**SIM, "engineArgs": {"fail_load": "no such weights", "load_time_s": 0}}, "no such weights"),
        ({**SIM, "engineArgs": {"colour": "blue"}}, "engine_args.colour"),
        ({**SIM, "engine": "warp"}, "unknown engine 'warp'"),
        ({**SIM, "engine": "json:JSONDecoder"}, "json has no Engine class JSONDecoder"),
    ],
)
async def test_an_engine_that_cannot_load_is_a_failed_worker_with_the_reason(
    tmp_path: Path, spec: dict[str, Any], reason: str
) -> None:
    async with worker_process(tmp_path, spec) as worker:
        statistics = await worker.until(FAILED)
        assert reason in statistics.reason
        error = await failure(worker.inference.Generate(request()))
        assert reason_of(error) == "RETRY_ELSEWHERE"
        assert reason in (error.details() or "")
        worker.terminate()
        assert await worker.exit_status() == 0


@pytest.mark.parametrize(
    ("engine", "reason"),
    [("EndlessEngine", "cannot report: ValueError: "), ("MuteEngine", "cannot report: ZeroDivisionError: ")],
)
async def test_an_engine_whose_figures_cannot_be_reported_is_a_failed_worker_with_the_reason(
    tmp_path: Path, engine: str, reason: str
) -> None:
    spec = {**SIM, "engine": f"tests.support.unreportable_engine:{engine}"}
    async with worker_process(tmp_path, spec) as worker:
        statistics = await worker.until(FAILED)
        assert statistics.reason.startswith(reason)
        assert statistics.address == worker.address
        await worker.load_when(lambda load: load.state == FAILED)
        error = await failure(worker.inference.Generate(request()))
        assert reason_of(error) == "RETRY_ELSEWHERE"
        assert reason in (error.details() or "")


async def test_routers_learn_of_figures_that_cannot_be_reported_although_no_agent_watches(
    tmp_path: Path,
) -> None:
    spec = {**SIM, "engine": "tests.support.unreportable_engine:EndlessEngine"}
    async with worker_process(tmp_path, spec) as worker:
        await worker.load_when(lambda load: load.state == FAILED)


async def test_a_dead_engine_fails_its_streams_and_the_worker_exits(tmp_path: Path) -> None:
    async with worker_process(tmp_path, {**MORTAL, "maxBatchSize": 2}) as worker:
        await worker.until()
        running = worker.inference.Generate(request(sampling={"max_tokens": 4000}))
        await running.read()
        killer = worker.inference.Generate(request("Die.", sampling={"max_tokens": 4000, "top_k": 3}))
        await killer.read()
        waiting = worker.inference.Generate(request("Wait.", sampling={"max_tokens": 4000}))
        running_error, killer_error, waiting_error, statistics = await asyncio.gather(
            failure(running), failure(killer), failure(waiting), worker.until(FAILED)
        )
        assert LAST_WORDS in statistics.reason
        assert reason_of(running_error) == reason_of(killer_error) == "STREAM_INTERRUPTED"
        assert LAST_WORDS in (running_error.details() or "")
        assert reason_of(waiting_error) in ("ENGINE_DEAD", "RETRY_ELSEWHERE")
        assert await worker.exit_status() == EXIT_ENGINE_DEAD


async def test_a_fault_in_an_engine_ends_one_request_and_no_more(tmp_path: Path) -> None:
    spec = {**SIM, "engine": "tests.support.mortal_engine:FaultyEngine"}
    async with worker_process(tmp_path, spec) as worker:
        await worker.until()
        error = await failure(worker.inference.Generate(request(sampling={"top_k": 5})))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "ZeroDivisionError: a fault" in (error.details() or "")
        await worker.idle()
        assert await read_all(worker.inference.Generate(request()))
        await failure(worker.inference.Generate(request(sampling={"top_p": 7.0})))
        load = (await worker.until()).load
        assert (load.failed_requests, load.finished_interactive.requests) == (1, 1), "its own faults alone"
        assert "Traceback" in worker.log


async def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SIM) as worker:
        await worker.until()
        call = worker.inference.Generate(request(sampling={"max_tokens": 200}))
        await call.read()
        worker.terminate()
        assert (await read_all(call))[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert await worker.exit_status() == 0
    assert not worker.socket.exists()


async def test_sigterm_waits_no_longer_than_the_drain_timeout(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SIM, drain_timeout_s=0.1) as worker:
        await worker.until()
        call = worker.inference.Generate(request(sampling={"max_tokens": 4000}))
        await call.read()
        worker.terminate()
        assert reason_of(await failure(call)) == "STREAM_INTERRUPTED"
        assert await worker.exit_status() == 0


def _narrow(worker: WorkerProcess) -> grpc.aio.Channel:
    """A channel that takes in little while nobody reads."""
    options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(worker.address, options=options)


async def test_a_client_that_takes_nothing_loses_its_stream(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SIM, reader_stall_s=0.4) as worker, _narrow(worker) as channel:
        await worker.until()
        asked = request(sampling={"max_tokens": 3000, "logprobs": 20})
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(asked)
        await call.read()
        await worker.idle()
        error = await failure(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.ABORTED, "READER_STALLED")
        assert "took nothing for 0.4 s" in (error.details() or "")


async def test_a_client_that_takes_nothing_does_not_hold_up_a_drain(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SIM) as worker, _narrow(worker) as channel:
        await worker.until()
        asked = request(sampling={"max_tokens": 3000, "logprobs": 20})
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(asked)
        await call.read()
        assert (await worker.control.Drain(wpb.DrainRequest(timeout_s=0.5))).aborted == 1
        await worker.idle()
        assert reason_of(await failure(call)) == "STREAM_INTERRUPTED"


@pytest.mark.parametrize(
    ("settings", "spec", "words"),
    [
        ({"max_wating": 3}, SIM, ["max_wating", "unknown key"]),
        ({"incarnation": 0}, SIM, ["incarnation", "at least 1"]),
        ({"role": "queen"}, SIM, ["role", "queen"]),
        ({"spec_file": "/nonexistent/spec.json"}, SIM, ["spec_file", "/nonexistent/spec.json"]),
        ({}, {"name": "toy"}, ["spec.json", "engine is required"]),
        ({}, {"name": "toy", "engine": "sim", "colour": "blue"}, ["spec.json", "colour"]),
    ],
)
async def test_a_bad_start_is_one_line_and_a_status(
    tmp_path: Path, settings: dict[str, Any], spec: dict[str, Any], words: list[str]
) -> None:
    status, lines = await _start_and_fail(worker_arguments(tmp_path, spec, **settings))
    assert status == 2
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)


async def test_a_taken_port_is_one_line_and_a_status(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, lines = await _start_and_fail(worker_arguments(tmp_path, SIM, listen=address))
    assert status == 2
    assert [address in line for line in lines if "error:" in line] == [True]


async def _start_and_fail(command: list[str]) -> tuple[int, list[str]]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stderr.decode().splitlines()
