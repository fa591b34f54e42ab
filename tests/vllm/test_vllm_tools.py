"""Tool calls on real vLLM: its own parsers and constraints, through its own tokenizer and detokeniser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format

from chiron.client.parsed import ParsedParts
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import (
    ChoiceDelta,
    Engine,
    EngineLoadError,
    EngineRequest,
    InvalidRequestError,
)
from services.worker.engines.vllm import VllmEngine
from services.worker.engines.vllm.prompts import PromptTokenizer
from services.worker.engines.vllm.tools import ToolSupport
from tests.conformance.engine_calls import (
    AUTO,
    NAMED,
    REQUIRED,
    TIME,
    CallSuite,
    answer,
    chat,
    make_reader,
    told_by,
)
from tests.vllm.support import engine_config

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}] "
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
)
TWO_CALLS = """Let me look.
<tool_call>
{"name": "weather", "arguments": {"city": "Zürich 🚀", "days": 2}}
</tool_call>
<tool_call>
{"name": "none-such", "arguments": {"a": [1, {"b": "}"}], "c": null}}
</tool_call>"""
QWEN = """Hi <tool_call>
<function=weather>
<parameter=city>
Zürich
</parameter>
<parameter=days>
2
</parameter>
</function>
</tool_call>"""


@pytest.mark.asyncio(loop_scope="module")
class TestVllmCalls(CallSuite):
    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    @classmethod
    async def engine(cls, random_llama: Path) -> AsyncIterator[VllmEngine]:
        config = engine_config(random_llama, tool_parser="hermes", chat_template=TEMPLATE)
        engine = await VllmEngine.start(config)
        yield engine
        await engine.close()

    async def test_calls_that_the_model_writes_of_itself_are_parsed(self, engine: Engine) -> None:
        request = chat(AUTO, structured_output=only(TWO_CALLS))
        found = await answer(engine, request)
        assert found.reading.only.text == TWO_CALLS
        assert found.of().content == "Let me look.\n"
        assert found.calls() == [
            ("weather", {"city": "Zürich 🚀", "days": 2}),
            ("none-such", {"a": [1, {"b": "}"}], "c": None}),
        ]
        one = chat(AUTO, structured_output=only(TWO_CALLS), parallel_tool_calls=False)
        assert [name for name, _ in (await answer(engine, one)).calls()] == ["weather"]

    @pytest.mark.parametrize("text", ["plain text <", "so <tool_call>\n{", "🚀"])
    async def test_what_is_no_call_is_content(self, engine: Engine, text: str) -> None:
        found = await answer(engine, chat(AUTO, structured_output=only(text)))
        assert (found.of().content, found.calls()) == (text, [])

    async def test_a_fresh_parser_goes_on_where_another_one_was(self, engine: Engine) -> None:
        written = await answer(engine, chat(AUTO, structured_output=only(TWO_CALLS), stop=["never there"]))
        plain = written.reading.only
        # The constraint alone would keep the stream from being resumed.
        request = chat(AUTO, stop=["never there"])
        whole = told_by(engine, request, plain, len(plain.tokens))
        calls = engine.calls(request)
        for cut in range(1, len(plain.tokens) - 1, 3):
            end = plain.text_ends[cut - 1]
            order = EngineRequest(
                request.request_id, engine.tokenize(request), calls.sampling, plain.tokens[:cut], end
            )
            delivered = engine.delivered(order)
            assert (delivered.text, list(delivered.text_ends)) == (plain.text[:end], plain.text_ends[:cut])
            parts = told_by(engine, request, plain, cut)
            rest = ChoiceDelta(0, plain.tokens[cut:], plain.text[end:], plain.text_ends[cut:])
            parts.add(make_reader(engine, request, delivered).read(rest) or pb.ParsedDelta())
            assert parts.so_far() == whole.so_far(), cut

    async def test_a_forced_calls_arguments_fit_its_schema_unless_the_tool_says_otherwise(
        self, engine: Engine
    ) -> None:
        loose = {**TIME, "function": {**TIME["function"], "strict": False}}
        tags = [
            engine.calls(chat(NAMED, named_tool="time", tools=[tool])).sampling.structured_output
            for tool in (TIME, loose)
        ]
        assert [tag.WhichOneof("constraint") for tag in tags] == ["structural_tag"] * 2
        assert ["Paris" in tag.structural_tag for tag in tags] == [True, False]
        assert not engine.calls(chat(AUTO, tools=[TIME])).sampling.HasField("structured_output")

    async def test_a_constrained_call_is_not_resumed_and_a_free_one_is(self, engine: Engine) -> None:
        for choice, more in ((REQUIRED, {}), (NAMED, {"named_tool": "time"})):
            assert "structured_output" in engine.resume_obstacle(engine.calls(chat(choice, **more)).sampling)
        assert engine.resume_obstacle(engine.calls(chat(AUTO)).sampling) == ""

    async def test_markup_of_special_tokens_stays_in_the_text(self, engine: Engine) -> None:
        sampling = engine.calls(chat(AUTO)).sampling
        assert sampling.keep_special_tokens

    async def test_the_prompt_is_the_same_in_every_process_and_has_calls_as_objects(
        self, engine: VllmEngine
    ) -> None:
        request = chat(AUTO, tools=[TIME])
        call = {"id": "c", "function": {"name": "f", "arguments": '{"z": 1, "a": "é"}'}}
        bad = {"id": "d", "function": {"name": "f", "arguments": "{broken"}}
        message = request.chat.messages.add(role="assistant")
        for each in (call, bad):
            json_format.ParseDict(each, message.tool_calls.add())
        text = engine._llm.get_tokenizer().decode(engine.tokenize(request))
        function = (
            '{"name": "time", "parameters": {"type": "object", "properties": {"city": {"type": "string", '
        )
        assert f'{{"type": "function", "function": {function}' in text
        assert '{"z": 1, "a": "é"}{}' in text

    async def test_a_schema_that_vllm_refuses_is_a_bad_request(self, engine: Engine) -> None:
        tools = [
            {"type": "function", "function": {"name": name, "parameters": {"$defs": {"x": {"type": kind}}}}}
            for name, kind in (("a", "string"), ("b", "integer"))
        ]
        pythonic = support(engine, "pythonic")
        with pytest.raises(InvalidRequestError, match="multiple schemas") as caught:
            pythonic.calls(chat(REQUIRED, tools=tools))
        assert caught.value.field == "chat.tools"

    @pytest.mark.parametrize(
        ("name", "text", "content", "calls"),
        [
            ("qwen3_xml", QWEN, "Hi ", [("weather", {"city": "Zürich", "days": 2})]),
            (
                "pythonic",
                '[weather(city="Paris", days=2), time(city="Rome")]',
                "",
                [("weather", {"city": "Paris", "days": 2}), ("time", {"city": "Rome"})],
            ),
            ("pythonic", "no calls [", "no calls [", []),
        ],
    )
    async def test_other_parsers_are_fed_alike(
        self, engine: VllmEngine, name: str, text: str, content: str, calls: list[tuple[str, Any]]
    ) -> None:
        found = fed(support(engine, name), engine._llm.get_tokenizer(), text)
        assert found.content == content
        assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == calls

    @pytest.mark.parametrize(
        ("reasoning", "thought"),
        # To Qwen3's parser a call ends the reasoning.
        [("deepseek_r1", "Is <tool_call> one?"), ("qwen3", "Is it one?")],
    )
    async def test_reasoning_is_told_apart_where_the_spec_names_a_parser_for_it(
        self, engine: VllmEngine, random_llama: Path, reasoning: str, thought: str
    ) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(random_llama)
        tokenizer.add_tokens(["<think>", "</think>"])
        llm = SimpleNamespace(vllm_config=engine._llm.vllm_config, get_tokenizer=lambda: tokenizer)
        config = engine_config("", tool_parser="hermes", reasoning_parser=reasoning)
        found = ToolSupport.load(config, llm, PromptTokenizer(tokenizer, TEMPLATE, 1 << 20))
        assert found is not None
        told = fed(found, tokenizer, f"<think>{thought}</think>{TWO_CALLS}")
        assert told.reasoning == thought
        assert told.content.strip() == "Let me look."
        assert [call.name for call in told.tool_calls] == ["weather", "none-such"]

    async def test_a_parser_that_does_not_fit_the_model_is_refused_by_name(self, engine: Engine) -> None:
        with pytest.raises(EngineLoadError, match=r"tool_parser: 'llama3_json' does not fit: .*python_tag"):
            support(engine, "llama3_json")

    async def test_a_template_that_knows_no_tools_is_refused(self, engine: Engine) -> None:
        with pytest.raises(
            EngineLoadError, match="tool_parser: the model's chat template does not show tools"
        ):
            support(engine, "hermes", "{{ messages[0].content }}")


def only(text: str) -> pb.StructuredOutput:
    """Makes the model write just this."""
    return pb.StructuredOutput(choice=pb.StringList(values=[text]))


def support(engine: Any, parser: str, template: str = TEMPLATE) -> ToolSupport:
    """Another parser for the engine's model."""
    config = engine_config("", tool_parser=parser, chat_template=template)
    prompts = PromptTokenizer(engine._llm.get_tokenizer(), template, engine.info.vocabulary_size)
    found = ToolSupport.load(config, engine._llm, prompts)
    assert found is not None
    return found


def fed(support: ToolSupport, tokenizer: Any, text: str) -> pb.ParsedOutput:
    """What a parser makes of a text, token by token."""
    parser = support.calls(chat(AUTO)).parser([1])
    parts, tokens, done = ParsedParts(), tokenizer.encode(text, add_special_tokens=False), ""
    for count, token in enumerate(tokens, start=1):
        now = tokenizer.decode(tokens[:count]).rstrip("\ufffd")
        parts.add(parser.feed([token], now[len(done) :], finished=count == len(tokens)))
        done = now
    return parts.so_far()
