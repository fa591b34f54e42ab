"""vLLM does what every engine must do."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.worker.engines.vllm import VllmEngine
from tests.conformance.engine_suite import EngineFactory, EngineSuite
from tests.vllm.support import engine_config


@pytest.fixture(scope="class")
def engine_factory(random_llama: Path) -> EngineFactory:
    return lambda: VllmEngine.start(engine_config(random_llama))


class TestVllm(EngineSuite):
    pass
