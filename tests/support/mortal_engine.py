"""Engines that fail on request, loaded by tests as module:Class."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.worker.engines.base import EngineOutput, EngineRequest
from services.worker.engines.sim import SimEngine

LAST_WORDS = "its core process was lost"


class MortalEngine(SimEngine):
    """The sim engine, but a request with top_k = N makes it die when that request has N tokens."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams until the engine dies."""
        seen = 0
        async for output in super().generate(request):
            yield output
            seen += sum(len(delta.token_ids) for delta in output.deltas)
            if request.sampling.top_k and seen >= request.sampling.top_k:
                self._die(LAST_WORDS)


class FaultyEngine(SimEngine):
    """The sim engine with a fault that only shows after the first output of a request with top_k set."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams one output, then raises what no engine should."""
        async for output in super().generate(request):
            yield output
            if request.sampling.top_k:
                raise ZeroDivisionError("a fault")
