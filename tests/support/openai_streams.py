"""Made-up streams of workers, and what an OpenAI client puts together from a streamed answer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from chiron.v1 import inference_pb2 as pb
from tests.support.fake_worker import FakeCall, FakeWorker

USAGE = pb.Usage(prompt_tokens=7, cached_prompt_tokens=4, completion_tokens=9)


@dataclass
class Choice:
    """One choice as an engine writes it: a text for each token, and what is parsed of each."""

    pieces: list[str]
    finish: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP
    logprobs: bool = False
    parsed: list[pb.ParsedDelta] = field(default_factory=list)

    def delta(self, choice: int, start: int, end: int) -> pb.OutputDelta:
        """Tokens `start` to `end`."""
        before = sum(map(len, self.pieces[:start]))
        lengths = [before + sum(map(len, self.pieces[start : at + 1])) for at in range(start, end)]
        delta = pb.OutputDelta(
            choice=choice,
            first_token_index=start,
            token_ids=range(start, end),
            text="".join(self.pieces[start:end]),
            text_ends=lengths,
            finish_reason=self.finish if end == len(self.pieces) else 0,
        )
        if self.logprobs:
            for at in range(start, end):
                others = [pb.TokenAlternative(token_id=at + 100, logprob=-0.5, text=f"<{at}>")]
                delta.logprobs.add(logprob=-1.0 - at, rank=2, alternatives=others)
        for one in self.parsed[start:end]:
            delta.parsed.MergeFrom(one)
        return delta


def messages(choices: list[Choice], cuts: list[list[int]]) -> list[pb.GenerateResponse]:
    """The stream of some choices, each cut into messages after the given numbers of tokens."""
    waiting = []
    for index, choice in enumerate(choices):
        bounds = sorted({0, len(choice.pieces), *(cut for cut in cuts[index] if cut < len(choice.pieces))})
        waiting.append([choice.delta(index, start, end) for start, end in itertools.pairwise(bounds)])
    told = []
    for turn in range(max(map(len, waiting))):
        told += [deltas[turn] for deltas in waiting if turn < len(deltas)]
    told[0].origin.spec_version = 3
    told[-1].usage.CopyFrom(USAGE)
    return [pb.GenerateResponse(deltas=[delta]) for delta in told]


TEXT = st.text(alphabet='aé\N{GRINNING FACE}\n"\\\u2028{} ', max_size=4)
PIECES = st.lists(TEXT, min_size=1, max_size=8)
CUTS = st.lists(st.integers(1, 8), max_size=6)


async def arrived(worker: FakeWorker, asked: asyncio.Task[Any]) -> FakeCall:
    """The call at which a client's request has arrived; raises what the client was told instead."""
    call = asyncio.create_task(worker.calls.get())
    await asyncio.wait({call, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not call.done():
        call.cancel()
        raise AssertionError(f"answered without a worker: {asked.result()}")
    return call.result()


def answer(call: FakeCall, stream: list[pb.GenerateResponse], timing: pb.Timing | None = None) -> None:
    """Answers a call with all of a stream."""
    if timing is not None:
        stream[-1].deltas[-1].timing.CopyFrom(timing)
    for message in stream:
        call.send(message)
    call.finish()


def events(told: str) -> Iterator[Any]:
    """The data of server-sent events, as a client reads them."""
    *data, rest = told.split("\n\n")
    assert rest == ""
    for each in data:
        name, _, value = each.partition(": ")
        assert name == "data"
        assert "\n" not in value
        yield json.loads(value)


def joined_chat(told: str) -> dict[int, dict[str, Any]]:
    """By choice: content, calls, log probabilities and end of a streamed chat, read by the official types."""
    found: dict[int, dict[str, Any]] = {}
    for data in events(told):
        chunk = ChatCompletionChunk.model_validate(data)
        for choice in chunk.choices:
            new = {"content": "", "calls": {}, "logprobs": [], "finish": None, "role": None}
            one = found.setdefault(choice.index, new)
            assert one["finish"] is None, "nothing comes after the end"
            assert (one["role"] is None) == (choice.delta.role == "assistant"), "the first says who speaks"
            one["role"] = "assistant"
            one["content"] += choice.delta.content or ""
            calls = choice.delta.tool_calls or []
            assert len({call.index for call in calls}) == len(calls), "clients take a second entry for a call"
            for call in calls:
                assert call.function is not None
                if call.id:
                    one["calls"][call.index] = [call.id, call.function.name, ""]
                one["calls"][call.index][2] += call.function.arguments or ""
            if choice.logprobs is not None:
                one["logprobs"] += [each.model_dump() for each in choice.logprobs.content or ()]
            one["finish"] = choice.finish_reason
    return found


def joined_text(told: str) -> dict[int, dict[str, Any]]:
    """The same of a streamed text completion."""
    found: dict[int, dict[str, Any]] = {}
    for data in events(told):
        for choice in Completion.model_validate(data | {"choices": ended(data["choices"])}).choices:
            new = {"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
            one = found.setdefault(choice.index, new)
            one["text"] += choice.text
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                if choice.logprobs is not None:
                    one[name] += getattr(choice.logprobs, name)
    return found


def ended(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The official type of a completion has no word for a choice that has not ended."""
    return [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in choices]
