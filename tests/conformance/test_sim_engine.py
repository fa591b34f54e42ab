"""The engine conformance suite on the sim engine."""

from __future__ import annotations

import pytest

from services.worker.engines.base import Engine, EngineConfig
from services.worker.engines.sim import SimEngine
from tests.conformance.engine_suite import EngineFactory, EngineSuite


@pytest.fixture(scope="module")
def engine_factory() -> EngineFactory:
    async def start() -> Engine:
        return await SimEngine.start(
            EngineConfig(
                instance_id="sim-0",
                model="sim",
                weights="",
                revision="",
                gpus=1,
                max_batch_size=8,
                batch_size=8,
                step_token_budget=2048,
                chat_template="",
                engine_args={"load_time_s": 0.0},
            )
        )

    return start


class TestSimEngine(EngineSuite):
    pass
