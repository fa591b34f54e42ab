"""Reads an engine's output to its end and checks what must hold of every stream."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, EngineOutput, EngineRequest
from tests.support.wait import eventually

STOP, LENGTH, ABORT = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_ABORT
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
_OUTER = ("request_id", "priority", "adapter", "delivered_token_ids", "delivered_text_length")
_ids = itertools.count()


@dataclass(slots=True)
class Choice:
    """All that one choice received."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    text_ends: list[int] = field(default_factory=list)
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    finish: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
    stop_match: str = ""
    delta_ends: list[int] = field(default_factory=list, compare=False)
    """Tokens that were out at the end of each delta, which depends on how fast the reader is."""


@dataclass(slots=True)
class Reading:
    """A request's output so far."""

    choices: dict[int, Choice] = field(default_factory=dict)
    outputs: list[EngineOutput] = field(default_factory=list)

    @property
    def only(self) -> Choice:
        """The single choice of a request with n = 1."""
        (choice,) = self.choices.values()
        return choice

    def add(self, output: EngineOutput) -> None:
        """Takes one output and asserts that it continues the stream as the interface promises."""
        if self.outputs:
            assert output.time >= self.outputs[-1].time, "times must not go back"
            assert output.preemptions >= self.outputs[-1].preemptions
        self.outputs.append(output)
        for delta in output.deltas:
            choice = self.choices.setdefault(delta.choice, Choice())
            assert choice.finish == pb.FINISH_REASON_UNSPECIFIED, "nothing may follow a finish reason"
            assert len(delta.text_ends) == len(delta.token_ids)
            assert len(delta.logprobs) in (0, len(delta.token_ids))
            choice.tokens += delta.token_ids
            choice.text += delta.text
            ends = [*choice.text_ends[-1:], *delta.text_ends]
            assert ends == sorted(ends), "text never shrinks"
            if delta.token_ids:
                assert delta.text_ends[-1] == len(choice.text), "the last end is the text's length"
            choice.text_ends += delta.text_ends
            choice.delta_ends.append(len(choice.tokens))
            choice.logprobs += delta.logprobs
            choice.finish, choice.stop_match = delta.finish_reason, delta.stop_match


def make_request(
    engine: Engine, prompt: str | Sequence[int] = "Tell me about the sea.", **options: Any
) -> EngineRequest:
    """A request with a fresh id; `options` are fields of EngineRequest or else of SamplingParams."""
    outer = {key: options.pop(key) for key in _OUTER if key in options}
    outer.setdefault("request_id", f"conformance-{next(_ids)}")
    wire = pb.GenerateRequest(model="conformance")
    if isinstance(prompt, str):
        wire.prompt = prompt
    else:
        wire.prompt_token_ids.ids.extend(prompt)
    return EngineRequest(
        prompt_token_ids=engine.tokenize(wire), sampling=pb.SamplingParams(**options), **outer
    )


async def drain(stream: AsyncIterator[EngineOutput], into: Reading | None = None) -> Reading:
    """Reads to the end; every choice must have a finish reason."""
    reading = into if into is not None else Reading()
    async for output in stream:
        reading.add(output)
    assert reading.choices, "a stream holds at least one choice"
    for choice in reading.choices.values():
        assert choice.finish != pb.FINISH_REASON_UNSPECIFIED, "a stream ends with a finish reason"
    return reading


async def run(
    engine: Engine, prompt: str | Sequence[int] = "Tell me about the sea.", **options: Any
) -> Reading:
    """Generates to the end. See `make_request` for the options."""
    return await drain(engine.generate(make_request(engine, prompt, **options)))


def occupancy(engine: Engine) -> tuple[int, int]:
    """Requests that run and that wait in the engine."""
    stats = engine.stats()
    return stats.running, stats.waiting


async def idle(engine: Engine) -> None:
    """Returns when nothing runs or waits."""
    await eventually(lambda: occupancy(engine) == (0, 0), what="nothing runs or waits in the engine")


def long_prompt(engine: Engine, topic: str) -> list[int]:
    """300 to 400 tokens, the same for the same topic."""
    tokens = list(make_request(engine, f"Once upon a {topic} there was a story. " * 40).prompt_token_ids)
    assert len(tokens) >= 300
    return tokens[:400]
