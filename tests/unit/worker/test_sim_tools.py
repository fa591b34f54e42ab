"""The sim engine calls what it is told to call, and a stream with calls goes on elsewhere without a seam."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, EngineConfig, EngineLoadError, InvalidRequestError
from services.worker.engines.sim import SimEngine
from tests.conformance.engine_calls import (
    AUTO,
    NAMED,
    REQUIRED,
    TIME,
    WEATHER,
    CallSuite,
    answer,
    assert_seamless,
    chat,
)
from tests.conformance.engine_reading import STOP
from tests.support.instant_clock import InstantClock

CONFIG = EngineConfig(
    instance_id="sim-0",
    model="sim",
    weights="",
    revision="",
    gpus=1,
    max_batch_size=8,
    batch_size=8,
    step_token_budget=2048,
    chat_template="",
    engine_args={"load_time_s": 0.0, "time_scale": 0.01},
    tool_parser="hermes",
)


@pytest.mark.asyncio(loop_scope="class")
class TestSimCalls(CallSuite):
    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def engine(cls) -> AsyncIterator[Engine]:
        engine = await SimEngine.start(CONFIG, InstantClock())
        yield engine
        await engine.close()

    async def test_it_calls_what_the_last_user_message_tells_it_to(self, engine: Engine) -> None:
        asked = (
            'Please\nsay Let me look.\ncall weather {"city": "Zürich 🚀"}\ncall none-such\nsay  That is all.'
        )
        found = await answer(engine, chat(AUTO, asked))
        assert found.calls() == [("weather", {"city": "Zürich 🚀"}), ("none-such", {})]
        assert found.of().content == "Let me look.\nThat is all."
        assert found.reading.only.finish == STOP
        assert "<tool_call>" in found.reading.only.text

    async def test_arguments_come_as_they_are_written(self, engine: Engine) -> None:
        found = await answer(engine, chat(AUTO, "call weather {city: Paris"))
        (call,) = found.of().tool_calls
        assert call.arguments == "{city: Paris}"

    async def test_a_named_tool_is_called_as_told_or_as_its_schema_says(self, engine: Engine) -> None:
        told = await answer(engine, chat(NAMED, 'call time {"city": "Rome"}', named_tool="time"))
        assert told.calls() == [("time", {"city": "Rome"})]
        other = await answer(engine, chat(NAMED, 'call time {"city": "Rome"}', named_tool="weather"))
        assert other.calls() == [("weather", {"city": "Paris", "days": 1})]

    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            ({"type": "object"}, {}),
            (None, {}),
            ({"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": "sea"}),
            (
                {
                    "type": "object",
                    "properties": {
                        "n": {"type": "number"},
                        "l": {"type": "array"},
                        "o": {"type": "object", "properties": {"c": {"const": 7}}, "required": ["c"]},
                        "u": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                        "t": {"type": ["integer", "null"]},
                        "d": {"type": "string", "default": "here"},
                        "x": {"$ref": "#/$defs/x"},
                    },
                    "required": ["n", "l", "o", "u", "t", "d", "x", "not there"],
                },
                {
                    "n": 1.5,
                    "l": [],
                    "o": {"c": 7},
                    "u": True,
                    "t": 1,
                    "d": "here",
                    "x": None,
                    "not there": None,
                },
            ),
        ],
    )
    async def test_the_simplest_arguments_that_a_schema_allows(
        self, engine: Engine, schema: Any, value: dict[str, Any]
    ) -> None:
        function = {"name": "f"} if schema is None else {"name": "f", "parameters": schema}
        found = await answer(engine, chat(REQUIRED, tools=[{"type": "function", "function": function}]))
        assert found.calls() == [("f", value)]

    async def test_a_constraint_of_the_clients_own_leaves_no_call(self, engine: Engine) -> None:
        own = pb.StructuredOutput(choice=pb.StringList(values=["yes"]))
        found = await answer(engine, chat(AUTO, "call time", structured_output=own))
        assert (found.of().content, found.calls()) == ("yes", [])

    @pytest.mark.parametrize("stop", [[], ["never there", "That was"]])
    async def test_a_stream_with_calls_that_is_cut_at_any_token_goes_on_as_if_it_had_not(
        self, engine: Engine, stop: list[str]
    ) -> None:
        calls = 'call weather {"city": "Zürich", "days": 2}\ncall time {"a": [1, {"b": "}"}]}'
        asked = f"say Now 🚀:\n{calls}\nsay That is."
        request = chat(AUTO, asked, stop=stop)
        whole = await answer(engine, request)
        assert len(whole.calls()) == 2
        await assert_seamless(engine, request, whole)


async def test_without_a_parser_calls_are_refused_by_name() -> None:
    engine = await SimEngine.start(replace(CONFIG, tool_parser=""))
    with pytest.raises(InvalidRequestError, match="no parser for tool calls") as caught:
        engine.calls(chat(AUTO, tools=[WEATHER, TIME]))
    assert caught.value.field == "chat.tools"
    await engine.close()


async def test_an_unknown_parser_is_refused_with_those_there_are() -> None:
    with pytest.raises(EngineLoadError, match=r"tool_parser: the sim engine has no 'mistral'; it has hermes"):
        await SimEngine.start(replace(CONFIG, tool_parser="mistral"))
