"""What an undisturbed engine answers: the sim engine itself, run in this process without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chiron.client.options import RequestOptions
from chiron.client.request import build_request
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineConfig, EngineRequest
from services.worker.engines.sim import SimEngine

_FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Written:
    """One choice as it has to arrive, in whatever portions."""

    token_ids: tuple[int, ...]
    text: str
    text_ends: tuple[int, ...]
    """For each token, the code points of the text out so far."""
    finish_reason: str
    stop_match: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    choices: tuple[Written, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)


class Oracle:
    """One engine for each version of a model; enter it as an asynchronous context."""

    def __init__(self, arguments: Callable[[str, int], Mapping[str, Any]]) -> None:
        """`arguments` gives the sim engine's for a model's name and version."""
        self._arguments = arguments
        self._engines: dict[tuple[str, int], SimEngine] = {}
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Oracle:
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self._engines.values():
            await engine.close()

    async def answer(self, options: RequestOptions, version: int = 0) -> Answer:
        """The answer of a version to a request with `max_tokens` set."""
        request = build_request(**options)
        engine = await self._engine(request.model, version)
        prompt = engine.tokenize(request)
        deltas: dict[int, list[ChoiceDelta]] = {}
        async for output in engine.generate(EngineRequest(request.request_id, prompt, request.sampling)):
            for delta in output.deltas:
                deltas.setdefault(delta.choice, []).append(delta)
        return Answer(tuple(_written(deltas[index]) for index in sorted(deltas)), len(prompt))

    async def _engine(self, model: str, version: int) -> SimEngine:
        async with self._starting:
            if (model, version) not in self._engines:
                config = EngineConfig(
                    instance_id=f"oracle-{model}-{version}",
                    model=model,
                    weights="",
                    revision="",
                    gpus=1,
                    max_batch_size=8,
                    batch_size=8,
                    step_token_budget=0,
                    chat_template="",
                    engine_args=self._arguments(model, version),
                )
                self._engines[model, version] = await SimEngine.start(config, _NoTime())
        return self._engines[model, version]


def _written(deltas: Sequence[ChoiceDelta]) -> Written:
    return Written(
        tuple(token for delta in deltas for token in delta.token_ids),
        "".join(delta.text for delta in deltas),
        tuple(end for delta in deltas for end in delta.text_ends),
        _FINISH[deltas[-1].finish_reason],
        deltas[-1].stop_match,
    )


class _NoTime:
    """A clock on which every wait is over at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    async def sleep_until(self, instant: float) -> None:
        self._now = max(self._now, instant)
