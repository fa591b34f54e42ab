"""Errors name fields as the caller wrote them."""

from __future__ import annotations

import pytest

from chiron.requests.validation import check_generate
from chiron.rpc.errors import OVER_CONTEXT, ChironError
from chiron.v1 import inference_pb2 as pb
from services.router.http import names
from services.router.http.chat.request import ChatRequest
from services.router.http.completions.request import CompletionRequest
from services.router.http.errors import of_chiron, renamed


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("chat", "messages"),
        ("chat.messages", "messages"),
        ("chat.messages[3].role", "messages[3].role"),
        ("chat.tools[0].function.name", "tools[0].function.name"),
        ("chat.named_tool", "tool_choice"),
        ("chat.template_kwargs.x", "chat_template_kwargs.x"),
        ("chat.template_kwargs.reasoning_effort", "reasoning_effort"),
        ("sampling.temperature", "temperature"),
        ("sampling.logprobs", "top_logprobs"),
        ("sampling.structured_output.json_schema", "response_format.json_schema"),
        ("slo.ttft_ms", "slo.ttft_ms"),
        ("adapter", "model"),
    ],
)
def test_fields_of_a_chat(field: str, name: str) -> None:
    assert renamed(field, names.CHAT) == name


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("prompt_token_ids", "prompt"),
        ("input", "prompt"),
        ("sampling.logprobs", "logprobs"),
        ("sampling.include_stop", "include_stop_str_in_output"),
    ],
)
def test_fields_of_a_text_completion(field: str, name: str) -> None:
    assert renamed(field, names.COMPLETION) == name


def test_every_sampling_parameter_has_a_name_that_there_is() -> None:
    for fields, kind in ((names.CHAT, ChatRequest), (names.COMPLETION, CompletionRequest)):
        known = {field.alias or name for name, field in kind.model_fields.items()}
        for parameter in pb.SamplingParams.DESCRIPTOR.fields_by_name:
            assert renamed(f"sampling.{parameter}", fields) in known


def test_every_mistake_of_a_request_is_told_by_its_name() -> None:
    wrong = pb.GenerateRequest(
        model="m", chat=pb.ChatInput(), sampling=pb.SamplingParams(top_p=2, n=99), priority=5000
    )
    error = of_chiron(ChironError.invalid(check_generate(wrong)), names.CHAT)
    assert error.param == "priority"
    for name in ("messages: ", "top_p: ", "n: "):
        assert name in error.message
    assert "sampling" not in error.message


def test_what_is_over_the_context_has_the_code_that_programs_look_for() -> None:
    violations = [("chat", "is too long")]
    over = of_chiron(ChironError.invalid(violations, OVER_CONTEXT), names.CHAT)
    assert (over.status, over.code, over.param) == (400, "context_length_exceeded", "messages")
    assert of_chiron(ChironError.invalid(violations), names.CHAT).code == "invalid_value"
