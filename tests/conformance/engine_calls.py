"""What every engine with a parser for tool calls must do. No expectation depends on speed.

`CallSuite` needs an engine that calls a tool when it is forced to, with arguments that fit the tool's schema.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf import json_format

from chiron.client.parsed import ParsedParts
from chiron.requests.tools import one_call
from chiron.v1 import inference_pb2 as pb
from services.worker.call_reader import CallReader, join
from services.worker.engines.base import ChoiceDelta, Engine, EngineRequest
from tests.conformance.engine_reading import LENGTH, Choice, Reading

CITY = {"type": "string", "enum": ["Paris", "Zürich"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": CITY,
                "days": {"type": "integer", "enum": [1, 2]},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
AUTO, REQUIRED, NAMED = pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED
_ids = itertools.count()


@dataclass(slots=True)
class Answer:
    """A request's output, raw and parsed."""

    reading: Reading = field(default_factory=Reading)
    deltas: dict[int, pb.ParsedDelta] = field(default_factory=dict)
    """By choice, joined."""

    def of(self, choice: int = 0) -> pb.ParsedOutput:
        """What a choice has said and called."""
        parts = ParsedParts()
        parts.add(self.deltas[choice])
        return parts.so_far()

    def calls(self, choice: int = 0) -> list[tuple[str, Any]]:
        """Names and arguments, which must be JSON."""
        return [(call.name, json.loads(call.arguments)) for call in self.of(choice).tool_calls]


def chat(
    choice: pb.ToolChoice.ValueType,
    content: str = "What is it like?",
    tools: Sequence[Mapping[str, Any]] = (WEATHER, TIME),
    **more: Any,
) -> pb.GenerateRequest:
    """A request with tools; `more` are fields of the chat, or else of its sampling."""
    own = {key: more.pop(key) for key in ("named_tool", "parallel_tool_calls") if key in more}
    message = pb.ChatMessage(role="user", content=content)
    request = pb.GenerateRequest(
        request_id=f"calls-{next(_ids)}",
        model="conformance",
        chat=pb.ChatInput(messages=[message], tool_choice=choice, **own),
        sampling=pb.SamplingParams(**{"temperature": 0.0, "max_tokens": 200, **more}),
    )
    for tool in tools:
        json_format.ParseDict(dict(tool), request.chat.tools.add())
    return request


async def answer(
    engine: Engine, request: pb.GenerateRequest, delivered: tuple[Sequence[int], int] | None = None
) -> Answer:
    """Generates and parses as a worker does; `delivered`: tokens and length of text that are there."""
    tokens, length = delivered or ((), 0)
    order = EngineRequest(
        request_id=request.request_id,
        prompt_token_ids=engine.tokenize(request),
        sampling=engine.calls(request).sampling,
        delivered_token_ids=tokens,
        delivered_text_length=length,
    )
    reader = make_reader(engine, request, engine.delivered(order) if tokens else None)
    found = Answer()
    async for output in engine.generate(order):
        if not tokens:
            found.reading.add(output)
        for delta in output.deltas:
            parsed = reader.read(delta)
            if parsed is not None:
                join(found.deltas.setdefault(delta.choice, pb.ParsedDelta()), parsed)
    return found


def told_by(engine: Engine, request: pb.GenerateRequest, whole: Choice, tokens: int) -> ParsedParts:
    """What a choice has said and called with its first tokens."""
    end = whole.text_ends[tokens - 1]
    delta = ChoiceDelta(0, whole.tokens[:tokens], whole.text[:end], whole.text_ends[:tokens])
    parts = ParsedParts()
    parts.add(make_reader(engine, request).read(delta) or pb.ParsedDelta())
    return parts


def make_reader(
    engine: Engine, request: pb.GenerateRequest, delivered: ChoiceDelta | None = None
) -> CallReader:
    calls = engine.calls(request)
    return CallReader(
        calls,
        engine.tokenize(request),
        request_id=request.request_id,
        choices=max(1, calls.sampling.n),
        one_call=one_call(request.chat),
        delivered=delivered,
    )


async def assert_seamless(engine: Engine, request: pb.GenerateRequest, whole: Answer) -> None:
    """Wherever the stream is cut, both parts together say and call what it says and calls without the cut."""
    plain = whole.reading.only
    for cut in range(1, len(plain.tokens) + 1):
        parts = told_by(engine, request, plain, cut)
        rest = await answer(engine, request, (plain.tokens[:cut], plain.text_ends[cut - 1]))
        parts.add(rest.deltas[0])
        assert parts.so_far() == whole.of(), cut


class CallSuite:
    """Part of a suite that has the fixture `engine`, as `EngineSuite` has."""

    async def test_a_required_call_is_made(self, engine: Engine) -> None:
        found = await answer(engine, chat(REQUIRED))
        # A model may go on with calls until its output is cut off.
        call = found.of().tool_calls[0]
        assert call.name in ("weather", "time")
        assert json.loads(call.arguments)["city"] in CITY["enum"]
        assert found.of().error == ""

    async def test_a_named_tool_is_called_and_no_other(self, engine: Engine) -> None:
        found = await answer(engine, chat(NAMED, named_tool="time"))
        assert {name for name, _ in found.calls()} == {"time"}
        assert found.calls()[0][1].keys() == {"city"}

    async def test_of_calls_that_may_not_be_parallel_one_comes(self, engine: Engine) -> None:
        found = await answer(engine, chat(REQUIRED, parallel_tool_calls=False))
        assert len(found.calls()) == 1

    async def test_a_call_that_is_cut_off_has_the_arguments_so_far(self, engine: Engine) -> None:
        request = chat(NAMED, named_tool="weather")
        whole = await answer(engine, request)
        tokens = len(whole.reading.only.tokens)
        arguments = whole.of().tool_calls[0].arguments
        cut = 0
        for most in range(1, tokens, 3):
            request.sampling.max_tokens = most
            short = await answer(engine, request)
            assert short.reading.only.finish == LENGTH
            calls = short.of().tool_calls
            if calls:
                assert calls[0].name == "weather"
                # Right behind the name vLLM's parsers add what would be no arguments.
                assert arguments.startswith(calls[0].arguments) or calls[0].arguments == "{}"
                cut += 2 < len(calls[0].arguments) < len(arguments)
        assert cut, "some output ends within the arguments"

    async def test_each_choice_has_calls_of_its_own(self, engine: Engine) -> None:
        found = await answer(engine, chat(NAMED, named_tool="time", n=3, temperature=1.0, seed=1))
        ids = [call.id for choice in range(3) for call in found.of(choice).tool_calls]
        assert len(found.deltas) == 3
        assert len(set(ids)) == len(ids) >= 3

    async def test_without_a_call_all_is_content(self, engine: Engine) -> None:
        found = await answer(engine, chat(AUTO, max_tokens=24, ignore_eos=True))
        assert found.of().content == found.reading.only.text
        assert not found.of().tool_calls

    async def test_a_cut_at_every_token_changes_nothing(self, engine: Engine) -> None:
        request = chat(AUTO, max_tokens=24, ignore_eos=True)
        await assert_seamless(engine, request, await answer(engine, request))

    async def test_less_text_than_the_tokens_released_may_have_been_delivered(self, engine: Engine) -> None:
        request = chat(AUTO, max_tokens=12, ignore_eos=True)
        plain = (await answer(engine, request)).reading.only
        for length in (0, 1, plain.text_ends[7] - 1):
            order = EngineRequest(
                request.request_id,
                engine.tokenize(request),
                engine.calls(request).sampling,
                delivered_token_ids=plain.tokens[:8],
                delivered_text_length=length,
            )
            delivered = engine.delivered(order)
            assert delivered.text == plain.text[:length]
            assert list(delivered.text_ends) == [min(end, length) for end in plain.text_ends[:8]]

    @pytest.mark.parametrize("stops", [["\n", "}"], ["city"]])
    async def test_a_stop_string_ends_a_call_where_it_is(self, engine: Engine, stops: list[str]) -> None:
        found = await answer(engine, chat(NAMED, named_tool="time", stop=stops, include_stop=False))
        text = found.reading.only.text
        assert not any(stop in text for stop in stops)
        for call in found.of().tool_calls:
            assert call.arguments in text
