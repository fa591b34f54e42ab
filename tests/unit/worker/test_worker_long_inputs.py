"""A long input is read beside the streams, not before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from chiron.v1 import cluster_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.config import WorkerConfig
from services.worker.core import Worker
from services.worker.engines.base import EngineConfig
from services.worker.engines.sim import SimEngine
from services.worker.state import READY

_LONG = "word " * 20_000
_PATIENCE_S = 10.0


class SlowReader(SimEngine):
    """Reads a text until it is let go."""

    let_go: threading.Event
    reading = most_reading = 0

    def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Token ids, once the test has said so."""
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        assert self.let_go.wait(_PATIENCE_S), "the loop stands still while this input is read"
        self.reading -= 1
        return [1, 2, 3]


async def _worker(folder: Path) -> tuple[Worker, SlowReader]:
    config = EngineConfig("i", "toy", "", "", 1, 8, 8, 0, "", engine_args={"load_time_s": 0})
    engine = await SlowReader.start(config)
    assert isinstance(engine, SlowReader)
    engine.let_go = threading.Event()
    worker = Worker(
        WorkerConfig(instance_id="i", incarnation=1, spec_file=folder / "spec.json", socket=folder / "s"),
        cluster_pb2.ModelSpec(name="toy"),
    )
    worker.engine = engine
    worker.state.move(READY)
    return worker, engine


async def test_the_loop_goes_on_while_a_long_text_is_read(tmp_path: Path) -> None:
    worker, engine = await _worker(tmp_path)
    reading = asyncio.create_task(worker.tokenize(pb.GenerateRequest(model="toy", prompt=_LONG)))
    asyncio.get_running_loop().call_later(0.05, engine.let_go.set)
    assert await reading == [1, 2, 3]
    await worker.close()


@pytest.mark.parametrize("leave", [False, True], ids=["patient", "gone"])
async def test_long_texts_are_read_one_at_a_time_whoever_still_waits(tmp_path: Path, leave: bool) -> None:
    worker, engine = await _worker(tmp_path)
    request = pb.GenerateRequest(model="toy", prompt=_LONG)
    calls = [asyncio.create_task(worker.tokenize(request)) for _ in range(8)]
    await asyncio.sleep(0)
    for call in calls[:4] if leave else ():
        call.cancel()
    asyncio.get_running_loop().call_later(0.05, engine.let_go.set)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[4:] == [[1, 2, 3]] * 4
    assert engine.most_reading == 1
    await worker.close()
