"""Requests that only a real engine can show: schemas, adapters, speculation, chat, traces."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf import json_format

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import EngineBusyError, InvalidRequestError
from services.worker.engines.vllm import VllmEngine
from tests.conformance.engine_reading import GREEDY, Reading, drain, make_request, run
from tests.vllm.adapters import write_adapter
from tests.vllm.spans import SpanReceiver
from tests.vllm.support import engine_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = (
    "{% if shout %}LOUD {% endif %}{% if tools %}{{ tools[0].function.name }}: {% endif %}"
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "[{{ m.role }}{% if m.tool_calls %} calls {{ m.tool_calls[0].id }}{% endif %}] {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spans() -> AsyncIterator[SpanReceiver]:
    receiver = SpanReceiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(
    random_llama: Path, tmp_path_factory: pytest.TempPathFactory, spans: SpanReceiver
) -> AsyncIterator[VllmEngine]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapter") / "poet", random_llama, rank=4)
    config = engine_config(random_llama, adapters={"poet": str(adapter)}, chat_template=TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", spans.endpoint)
        engine = await VllmEngine.start(config)
    yield engine
    await engine.close()


def rendered(engine: VllmEngine, chat: pb.ChatInput) -> str:
    text: str = engine._llm.get_tokenizer().decode(engine.tokenize(pb.GenerateRequest(chat=chat)))
    return text


async def test_a_json_schema_shapes_the_output(engine: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    constraint = pb.StructuredOutput(json_schema=json.dumps(schema))
    choice = (await run(engine, max_tokens=200, temperature=0.0, structured_output=constraint)).only
    answer = json.loads(choice.text)
    assert answer.keys() == {"city", "big"}
    assert answer["city"] in ("Paris", "Rome")
    assert isinstance(answer["big"], bool)


@pytest.mark.parametrize(
    ("kind", "constraint"), [("json_schema", "{not json"), ("regex", "(unclosed"), ("grammar", "root ::= ")]
)
async def test_a_bad_constraint_is_refused_by_name(engine: VllmEngine, kind: str, constraint: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await run(engine, max_tokens=8, structured_output=pb.StructuredOutput(**{kind: constraint}))
    assert caught.value.field == f"sampling.structured_output.{kind}"


async def test_an_adapter_changes_the_output(engine: VllmEngine) -> None:
    base = (await run(engine, max_tokens=24, **GREEDY)).only.tokens
    poet = (await run(engine, max_tokens=24, adapter="poet", **GREEDY)).only.tokens
    assert poet != base
    assert (await run(engine, max_tokens=24, **GREEDY)).only.tokens == base


async def test_an_unknown_adapter_is_refused_with_those_there_are(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequestError, match=r"unknown adapter 'prose'.*poet"):
        await run(engine, max_tokens=2, adapter="prose")


async def test_the_specs_chat_template_renders_messages_tools_and_variables(engine: VllmEngine) -> None:
    chat = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="Hi")])
    assert rendered(engine, chat) == "[user] Hi[answer]"
    json_format.ParseDict({"function": {"name": "look_up"}}, chat.tools.add())
    chat.template_kwargs["shout"] = True
    call = pb.ChatMessage(role="assistant")
    json_format.ParseDict({"id": "c1"}, call.tool_calls.add())
    chat.messages.append(call)
    assert rendered(engine, chat) == "LOUD look_up: [user] Hi[assistant calls c1] [answer]"


async def test_what_the_chat_template_refuses_is_a_bad_request(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequestError, match=r"chat: .*no such role"):
        rendered(engine, pb.ChatInput(messages=[pb.ChatMessage(role="bad", content="Hi")]))
    chat = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="Hi")])
    chat.template_kwargs["tokenize"] = False
    with pytest.raises(InvalidRequestError, match=r"chat\.template_kwargs\.tokenize"):
        rendered(engine, chat)
    with pytest.raises(InvalidRequestError, match=r"chat\.messages"):
        rendered(engine, pb.ChatInput())


async def test_the_engines_span_continues_the_requests_trace(engine: VllmEngine, spans: SpanReceiver) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    request = make_request(engine, max_tokens=3, **GREEDY)
    await drain(engine.generate(dataclasses.replace(request, trace_headers=headers)))
    span = await spans.span("llm_request", trace_id)
    assert span.parent_span_id.hex() == parent_id


async def test_merged_deltas_have_the_offsets_of_single_ones(engine: VllmEngine) -> None:
    options = {"max_tokens": 120, "stop": ["never in it"], **GREEDY}
    prompt = make_request(engine, "offsets").prompt_token_ids
    singly = (await run(engine, prompt, **options)).only
    stream, reading = engine.generate(make_request(engine, prompt, **options)), Reading()
    reading.add(await anext(stream))
    await run(engine, "somebody else", max_tokens=200, **GREEDY)
    await drain(stream, reading)
    assert len(reading.outputs) < 60, "many tokens came at once"
    assert reading.only.text_ends == singly.text_ends


async def test_a_prompt_that_ends_within_a_character_is_not_repeated(engine: VllmEngine) -> None:
    def ids(prompt: str) -> list[int]:
        return list(make_request(engine, prompt).prompt_token_ids)

    whole, before = ids("The answer is 🦀"), len(ids("The answer is "))
    assert len(whole) > before, "the character takes several tokens"
    forced = {whole[-1]: 100.0}
    reading = await run(engine, whole[:-1], max_tokens=1, logit_bias=forced, **GREEDY)
    assert reading.only.tokens == [whole[-1]]
    assert reading.only.text.endswith("🦀")
    assert "answer" not in reading.only.text
    with pytest.raises(InvalidRequestError, match=r"sampling\.stop"):
        await run(engine, whole[:-1], max_tokens=1, stop=["answer"], **GREEDY)


async def test_after_a_sleep_that_drops_the_weights_they_are_read_again(engine: VllmEngine) -> None:
    expected = (await run(engine, max_tokens=16, **GREEDY)).only.tokens
    await engine.sleep(2)
    with pytest.raises(EngineBusyError, match="sleeps already"):
        await engine.sleep(1)
    await engine.wake()
    with pytest.raises(EngineBusyError, match="awake"):
        await engine.wake()
    assert (await run(engine, max_tokens=16, **GREEDY)).only.tokens == expected


async def test_a_sleep_level_that_does_not_exist_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match="level must be 1 or 2, not 3"):
        await engine.sleep(3)
