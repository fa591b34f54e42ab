"""What every engine must do, whatever runs beneath it. No expectation depends on speed.

A test module subclasses `EngineSuite` and has a fixture `engine_factory` (a function of the module, scope
"module") that returns a coroutine function that starts an engine. The engine needs a context of at least
1,024 tokens, a ceiling of the batch size of at least 4, a step-token budget of at least 512, a chat
template, and arithmetic that makes greedy decoding repeatable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from services.worker.engines.base import Engine
from tests.conformance.engine_control import ControlSuite
from tests.conformance.engine_output import OutputSuite
from tests.conformance.engine_reading import idle
from tests.conformance.engine_resume import ResumeSuite

EngineFactory = Callable[[], Awaitable[Engine]]


@pytest.mark.asyncio(loop_scope="class")
class EngineSuite(OutputSuite, ResumeSuite, ControlSuite):
    """One engine serves all tests of a class; each test leaves it idle."""

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def engine(cls, engine_factory: EngineFactory) -> AsyncIterator[Engine]:
        engine = await engine_factory()
        yield engine
        await engine.close()
        await engine.close()  # closing twice is allowed

    @pytest_asyncio.fixture(loop_scope="class", autouse=True)
    async def leaves_the_engine_idle(self, engine: Engine) -> AsyncIterator[None]:
        info, before = engine.info, engine.stats()
        await engine.set_limits(batch_size=info.max_batch_size)
        yield
        await engine.set_limits(batch_size=info.max_batch_size, step_token_budget=before.step_token_budget)
        await idle(engine)
