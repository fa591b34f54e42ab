"""A worker refuses bad input with one error that names its cause."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chiron.rpc.errors import reason_of
from chiron.rpc.servers import MAX_MESSAGE_BYTES
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from tests.support.worker_process import (
    WorkerProcess,
    failure,
    read_all,
    request,
    violated_fields,
    worker_process,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPEC = {
    "name": "toy",
    "engine": "sim",
    "engineArgs": {"load_time_s": 0, "max_context_tokens": 100},
    "adapters": [{"name": "french", "path": "/nowhere"}],
}
USER = [pb.ChatMessage(role="user", content="Hi")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path_factory.mktemp("w"), SPEC) as process:
        await process.until()
        yield process


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt_token_ids", {"prompt_token_ids": pb.TokenIds()}),
        ("prompt_token_ids", {"prompt_token_ids": pb.TokenIds(ids=[4_000_000_000])}),
        ("chat.messages", {"chat": pb.ChatInput()}),
        ("chat.messages[0].role", {"chat": pb.ChatInput(messages=[pb.ChatMessage(role="pirate")])}),
        ("request_id", {"request_id": "with spaces"}),
        ("priority", {"priority": 5000}),
        ("elapsed_ms", {"elapsed_ms": -1.0}),
        ("slo.ttft_ms", {"slo": types_pb2.Slo(ttft_ms=-5)}),
        ("slo.itl_ms", {"slo": types_pb2.Slo(itl_ms=0)}),
        ("slo.deadline_s", {"slo": types_pb2.Slo(deadline_s=float("nan"))}),
        ("sampling.max_tokens", {"sampling": {"max_tokens": 0}}),
        ("sampling.min_tokens", {"sampling": {"max_tokens": 4, "min_tokens": 5}}),
        ("sampling.temperature", {"sampling": {"temperature": -1.0}}),
        ("sampling.top_p", {"sampling": {"top_p": 1.5}}),
        ("sampling.n", {"sampling": {"n": 2, "temperature": 0.0}}),
        ("sampling.n", {"sampling": {"n": 17, "temperature": 1.0}}),
        ("sampling.stop", {"sampling": {"stop": [""]}}),
        ("sampling.logprobs", {"sampling": {"logprobs": 21}}),
        ("sampling.structured_output", {"sampling": {"structured_output": pb.StructuredOutput()}}),
        (
            "sampling.structured_output.regex",
            {"sampling": {"structured_output": pb.StructuredOutput(regex="a+")}},
        ),
        ("sampling.logit_bias", {"sampling": {"logit_bias": {4_000_000_000: 1.0}}}),
        ("resume.delivered_token_ids", {"resume": pb.ResumeState(delivered_token_ids=[9] * 9)}),
        ("resume.delivered_token_ids", {"resume": pb.ResumeState(delivered_token_ids=[1 << 31])}),
        ("resume.delivered_token_ids", {"resume": pb.ResumeState(delivered_token_ids=[300] * 101)}),
        ("resume.delivered_text_length", {"resume": pb.ResumeState(delivered_text_length=1)}),
        (
            "resume.delivered_text_length",
            {"resume": pb.ResumeState(delivered_token_ids=[300], delivered_text_length=99)},
        ),
        (
            "resume.origin.ttft_ms",
            {"resume": pb.ResumeState(origin=pb.StreamOrigin(ttft_ms=float("nan")))},
        ),
    ],
)
async def test_a_bad_field_is_named(worker: WorkerProcess, field: str, fields: dict[str, Any]) -> None:
    error = await failure(worker.inference.Generate(request(**fields)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(error) == [field]
    assert field in (error.details() or "")


async def test_a_request_without_input_is_refused(worker: WorkerProcess) -> None:
    error = await failure(worker.inference.Generate(pb.GenerateRequest(model="toy")))
    assert violated_fields(error) == ["input"]


async def test_every_bad_field_is_named_at_once(worker: WorkerProcess) -> None:
    bad = request(prompt="", priority=5000, sampling={"top_p": 0.0})
    assert violated_fields(await failure(worker.inference.Generate(bad))) == [
        "priority",
        "prompt",
        "sampling.top_p",
    ]


@pytest.mark.parametrize(
    ("field", "prompt_tokens", "max_tokens"),
    [("prompt_token_ids", 100, 1), ("sampling.max_tokens", 90, 11)],
)
async def test_over_the_context_both_lengths_are_named(
    worker: WorkerProcess, field: str, prompt_tokens: int, max_tokens: int
) -> None:
    ids = pb.TokenIds(ids=[300] * prompt_tokens)
    error = await failure(
        worker.inference.Generate(request(prompt_token_ids=ids, sampling={"max_tokens": max_tokens}))
    )
    assert violated_fields(error) == [field]
    for length in (prompt_tokens, max_tokens, 100):
        assert str(length) in (error.details() or "")


async def test_the_whole_context_can_be_used(worker: WorkerProcess) -> None:
    ids = pb.TokenIds(ids=[300] * 90)
    asked = request(prompt_token_ids=ids, sampling={"max_tokens": 10})
    assert (await read_all(worker.inference.Generate(asked)))[-1].usage.completion_tokens == 10


async def test_another_model_is_not_found_here(worker: WorkerProcess) -> None:
    error = await failure(worker.inference.Generate(request(model="llama")))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "'toy'" in (error.details() or "")


async def test_an_unknown_adapter_is_not_found_and_the_known_are_named(worker: WorkerProcess) -> None:
    error = await failure(worker.inference.Generate(request(adapter="dutch")))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")
    assert "french" in (error.details() or "")


@pytest.mark.parametrize("wire", [b"\xff\xff\xff", b"\x12\x02\xff\xfe"], ids=["no message", "no text"])
async def test_what_is_no_request_is_the_callers_fault(worker: WorkerProcess, wire: bytes) -> None:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        error = await failure(channel.unary_stream("/chiron.v1.InferenceService/Generate")(wire))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert "chiron.v1.GenerateRequest" in (error.details() or "")


async def test_an_oversize_message_is_refused(worker: WorkerProcess) -> None:
    large = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(worker.address, options=large) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        error = await failure(stub.Generate(request("x" * (MAX_MESSAGE_BYTES + 1))))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_worker_has_no_route(worker: WorkerProcess) -> None:
    error = await failure(worker.inference.Route(pb.RouteRequest(model="toy")))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
