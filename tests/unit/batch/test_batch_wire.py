"""What the bytes of a batch queue mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from chiron.batch import wire
from chiron.batch.records import ItemState, Result
from chiron.rpc.errors import Reason
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import inference_pb2


def recorded(state: ItemState, result: bytes = b"") -> Result:
    return Result(
        number=3,
        index=0,
        custom_id="a",
        state=state,
        result=result,
        recorded=1_700_000_000.25,
        late=True,
        attempts=2,
    )


def test_equal_requests_have_equal_bodies() -> None:
    one, other = inference_pb2.GenerateRequest(model="toy"), inference_pb2.GenerateRequest(model="toy")
    for key in range(20):
        one.sampling.logit_bias[key] = 1.0
        other.sampling.logit_bias[19 - key] = 1.0
    assert wire.body_of(one) == wire.body_of(other)
    assert wire.request_of(wire.body_of(one)) == one


def test_a_result_is_what_the_work_made_and_what_the_queue_knows() -> None:
    output = pb.ItemOutput(choices=[pb.ItemChoice(text="hi")], model="toy")
    message = wire.item_result(recorded(ItemState.SUCCEEDED, wire.succeeded(output)))
    assert message.output == output
    assert not message.HasField("error")
    assert (message.number, message.index, message.custom_id, message.attempts) == (3, 0, "a", 2)
    assert message.state == pb.ITEM_STATE_SUCCEEDED
    assert message.late
    assert message.recorded.ToMilliseconds() == 1_700_000_000_250


def test_a_failure_keeps_its_reason() -> None:
    message = wire.item_result(recorded(ItemState.FAILED, wire.failed("MODEL_NOT_FOUND", "unknown model")))
    assert (message.error.reason, message.error.message) == ("MODEL_NOT_FOUND", "unknown model")
    assert not message.HasField("output")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ItemState.CANCELLED, "CANCELLED"),
        (ItemState.EXPIRED, "DEADLINE_EXCEEDED"),
        (ItemState.FAILED, "ATTEMPTS_EXHAUSTED"),
    ],
)
def test_what_ended_without_words_is_told_why(state: ItemState, reason: str) -> None:
    message = wire.item_result(recorded(state))
    assert message.error.reason == reason
    assert message.error.message
    assert reason in Reason.__members__


@pytest.mark.parametrize("state", list(ItemState))
def test_what_went_with_its_file_says_so_and_how_it_had_ended(state: ItemState) -> None:
    message = wire.item_result(dataclasses.replace(recorded(state), removed=True))
    assert message.state == int(state)
    assert "deleted with the file" in message.error.message


@pytest.mark.parametrize(
    "damage", [{"damaged": True}, {"damaged": True, "result": b"\xff"}, {"result": b"\xff"}]
)
def test_what_is_damaged_is_a_failure(damage: dict[str, Any]) -> None:
    message = wire.item_result(dataclasses.replace(recorded(ItemState.SUCCEEDED), **damage))
    assert message.state == pb.ITEM_STATE_FAILED
    assert message.error.reason == "INTERNAL"
    assert (message.number, message.custom_id) == (3, "a")
