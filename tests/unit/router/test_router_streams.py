"""Which streams a router ends when nothing is heard of their instance any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from services.router.delivered import Delivered
from services.router.streams import Streams


class FakeCall:
    """A call that only remembers whether it was cancelled."""

    cancelled = False

    def cancel(self) -> bool:
        """As a gRPC call's."""
        self.cancelled = True
        return True


@pytest.mark.parametrize(
    ("instance_id", "delivered", "may_move", "begun", "ended"),
    [
        ("a", False, False, False, True),
        ("a", False, False, True, True),
        ("a", True, True, True, True),
        ("a", True, True, False, False),
        ("a", True, False, True, False),
        ("b", False, True, True, False),
    ],
)
async def test_what_another_instance_can_take_over_is_ended(
    instance_id: str, delivered: bool, may_move: bool, begun: bool, ended: bool
) -> None:
    streams, call = Streams(60.0), FakeCall()
    fake: Any = call
    stream = streams.open(fake, instance_id, may_move=may_move)
    stream.delivered = delivered
    streams.abandon("a", begun)
    await asyncio.sleep(0)
    assert (call.cancelled, stream.abandoned) == (ended, ended)


@pytest.mark.parametrize(
    ("sampling", "may_move"),
    [
        ({}, True),
        ({"temperature": 0.7, "top_p": 0.9, "stop": ["x"], "logprobs": 3}, True),
        ({"temperature": 0.0, "seed": 7}, True),
        ({"temperature": 0.7, "seed": 7}, False),
        ({"seed": 0}, False),
        ({"n": 2}, False),
        ({"presence_penalty": 0.5}, False),
        ({"frequency_penalty": -0.5}, False),
        ({"structured_output": pb.StructuredOutput(json_object=True)}, False),
    ],
)
def test_a_stream_moves_where_no_engine_keeps_its_past_to_itself(
    sampling: dict[str, Any], may_move: bool
) -> None:
    request = pb.GenerateRequest(sampling=pb.SamplingParams(**sampling))
    assert Delivered(request).may_move is may_move


@pytest.mark.parametrize(
    ("choice", "parallel", "may_move"),
    [
        (pb.TOOL_CHOICE_AUTO, True, True),
        (pb.TOOL_CHOICE_AUTO, False, False),
        (pb.TOOL_CHOICE_REQUIRED, True, False),
        (pb.TOOL_CHOICE_NAMED, True, False),
        (pb.TOOL_CHOICE_NONE, False, True),
    ],
)
def test_a_stream_whose_calls_may_be_constrained_stays(
    choice: pb.ToolChoice.ValueType, parallel: bool, may_move: bool
) -> None:
    chat = pb.ChatInput(tool_choice=choice, parallel_tool_calls=parallel)
    assert Delivered(pb.GenerateRequest(chat=chat)).may_move is may_move
