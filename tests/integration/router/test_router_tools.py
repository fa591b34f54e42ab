"""Requests with tool calls to be parsed reach only models that have a parser for them."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import json_format

from chiron.batch.records import Limits
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import batch_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.batch.items import ItemChecker, Wrong

TIME = {"type": "function", "function": {"name": "time"}}


def ask(model: str, choice: pb.ToolChoice.ValueType) -> pb.GenerateRequest:
    chat = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="x")], tool_choice=choice)
    json_format.ParseDict(TIME, chat.tools.add())
    return pb.GenerateRequest(model=model, chat=chat)


async def test_a_model_without_a_parser_is_refused_and_no_worker_asked(
    start_router, start_worker, controller
) -> None:
    worker = await start_worker("w")
    controller.add("m", [worker])
    router = await start_router()
    await router.sees(worker)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in router.stub.Generate(ask("m", pb.TOOL_CHOICE_AUTO)):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == "INVALID_ARGUMENT"
    assert "chat.tools: model 'm' has no tool parser" in (caught.value.details() or "")
    assert "with tool_choice none they stay text" in (caught.value.details() or "")
    assert worker.calls.empty()


@pytest.mark.parametrize(
    ("choice", "parser"),
    [(pb.TOOL_CHOICE_NONE, ""), (pb.TOOL_CHOICE_UNSPECIFIED, ""), (pb.TOOL_CHOICE_AUTO, "x")],
)
async def test_with_a_parser_or_without_a_choice_the_request_goes_to_its_worker(
    start_router, start_worker, controller, choice, parser
) -> None:
    worker = await start_worker("w")
    controller.add("m", [worker], tool_parser=parser)
    router = await start_router()
    await router.sees(worker)
    call = router.stub.Generate(ask("m", choice))
    asked = await worker.calls.get()
    assert asked.request.chat.tool_choice == choice
    asked.text("hello")
    asked.finish()
    assert [message.deltas[0].text async for message in call] == ["hello"]


def test_items_of_a_batch_are_checked_alike() -> None:
    models = {
        "bare": control_pb2.RoutedModel(name="bare"),
        "able": control_pb2.RoutedModel(name="able", tool_parser="x"),
    }
    checker = ItemChecker(None, models.get, Limits(), fail_invalid=False)
    found = []
    for index, model in enumerate(("bare", "able")):
        for choice in (pb.TOOL_CHOICE_NONE, pb.TOOL_CHOICE_REQUIRED):
            request = ask(model, choice)
            request.request_class = types_pb2.REQUEST_CLASS_BATCH
            found.append(checker.check(batch_pb2.BatchItem(index=index, request=request)))
    wrong = [each for each in found if isinstance(each, Wrong)]
    assert wrong == [found[1]]
    ((field, text),) = wrong[0].violations
    assert (field, "'bare' has no tool parser" in text) == ("request.chat.tools", True)
