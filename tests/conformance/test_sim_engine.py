"""The engine conformance suite on the sim engine."""

from __future__ import annotations

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, EngineConfig
from services.worker.engines.sim import SimEngine
from tests.conformance.engine_reading import run
from tests.conformance.engine_resume import assert_same, resumed
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
    async def test_a_script_of_long_characters_is_cut_at_every_token(self, engine: Engine) -> None:
        constraint = pb.StructuredOutput(choice=pb.StringList(values=["a🚀é漢字🚀🚀 and so on"]))
        options = {"max_tokens": 64, "temperature": 0.0, "structured_output": constraint, "stop": ["so off"]}
        whole = (await run(engine, **options)).only
        assert whole.text == "a🚀é漢字🚀🚀 and so on"
        for cut in range(1, len(whole.tokens) + 1):
            assert_same(await resumed(engine, whole, cut, **options), whole)
