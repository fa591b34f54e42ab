"""Routers hear which requests a worker gave up, apart from those that came to their end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import cluster_pb2
from services.worker import reports
from services.worker.config import WorkerConfig
from services.worker.core import Worker
from services.worker.engines.base import EngineConfig
from services.worker.engines.sim import SimEngine
from services.worker.live import LiveRequest
from services.worker.state import READY


@pytest.mark.parametrize(
    ("reason", "given_up"),
    [
        (None, False),
        (Reason.STREAM_INTERRUPTED, True),
        (Reason.RETRY_ELSEWHERE, True),
        (Reason.ENGINE_DEAD, True),
        (Reason.ABORTED, False),
        (Reason.READER_STALLED, False),
        (Reason.INVALID_ARGUMENT, False),
    ],
)
async def test_what_goes_on_elsewhere_is_told_apart(
    tmp_path: Path, reason: Reason | None, given_up: bool
) -> None:
    worker = Worker(
        WorkerConfig(instance_id="i", incarnation=1, spec_file=tmp_path / "spec", socket=tmp_path / "s"),
        cluster_pb2.ModelSpec(name="toy"),
    )
    worker.engine = await SimEngine.start(
        EngineConfig("i", "toy", "", "", 1, 8, 8, 0, "", engine_args={"load_time_s": 0})
    )
    worker.state.move(READY)
    task = asyncio.current_task()
    assert task is not None
    with worker.load_board.subscribe([]) as subscriber:
        try:
            with worker.accept(LiveRequest("r", 0, False, 1, 0, 0.0, task)):
                if reason is not None:
                    raise ChironError(reason, "why")
        except ChironError:
            assert reason is not None
        load = reports.load_response(worker, subscriber)
        again = reports.load_response(worker, subscriber)
    assert (list(load.started_request_ids), list(load.finished_request_ids)) == (["r"], ["r"])
    assert list(load.interrupted_request_ids) == (["r"] if given_up else [])
    assert not again.finished_request_ids
    assert not again.interrupted_request_ids
    await worker.close()
