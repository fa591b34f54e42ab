"""What leaves at once, what travels together, and how far apart messages are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.config import WorkerConfig
from services.worker.outbox import Outbox, Spacing, leaves_at

NEVER_S, ALWAYS_S = 3600.0, 0.0


def delta(first: int, count: int = 1, *, choice: int = 0, **fields: Any) -> pb.OutputDelta:
    indexes = range(first, first + count)
    return pb.OutputDelta(
        choice=choice,
        first_token_index=first,
        token_ids=indexes,
        text="x" * count,
        text_ends=[index + 1 for index in indexes],
        logprobs=[pb.TokenLogprobs(rank=index + 1) for index in indexes],
        **fields,
    )


def outbox(interval_s: float) -> Outbox:
    return Outbox(lambda: interval_s)


def put(box: Outbox, *deltas: pb.OutputDelta) -> None:
    for each in deltas:
        box.put(each)
    box.send()


async def nothing(box: Outbox) -> bool:
    """Whether nothing may leave now."""
    waiting = asyncio.ensure_future(box.take())
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    return not waiting.done()


async def test_the_first_tokens_leave_at_once_and_later_ones_wait_for_their_time() -> None:
    box = outbox(NEVER_S)
    put(box, delta(0))
    assert (await box.take()).deltas == [delta(0)]
    put(box, delta(1))
    assert await nothing(box)


async def test_without_an_interval_each_leaves_by_itself() -> None:
    box = outbox(ALWAYS_S)
    for index in range(3):
        put(box, delta(index))
        assert (await box.take()).deltas == [delta(index)]


async def test_what_waited_leaves_in_one_delta_once_it_is_time() -> None:
    box = outbox(0.01)
    put(box, delta(0))
    await box.take()
    for index in range(1, 4):
        put(box, delta(index))
    assert (await box.take()).deltas == [delta(1, 3)]


async def test_the_end_leaves_at_once_with_all_that_waited() -> None:
    box = outbox(NEVER_S)
    put(box, delta(0))
    await box.take()
    put(box, delta(1))
    box.put(delta(2, finish_reason=pb.FINISH_REASON_STOP, stop_match="!"))
    box.close(pb.Usage(completion_tokens=3), pb.Timing(ttft_ms=5))
    last = delta(1, 2, finish_reason=pb.FINISH_REASON_STOP, stop_match="!")
    last.usage.completion_tokens, last.timing.ttft_ms = 3, 5
    assert (await box.take()).deltas == [last]
    assert await box.take() is None


async def test_what_was_put_before_a_failure_leaves_first() -> None:
    box = outbox(NEVER_S)
    put(box, delta(0))
    await box.take()
    put(box, delta(1))
    box.fail(RuntimeError("dead"))
    assert (await box.take()).deltas == [delta(1)]
    with pytest.raises(RuntimeError, match="dead"):
        await box.take()


async def test_choices_keep_their_own_deltas_and_usage_comes_last() -> None:
    box = outbox(NEVER_S)
    put(box, delta(0, choice=0), delta(0, choice=1))
    await box.take()
    put(box, delta(1, choice=1), delta(1, choice=0))
    box.put(delta(2, choice=1, finish_reason=pb.FINISH_REASON_LENGTH))
    box.put(delta(2, choice=0, finish_reason=pb.FINISH_REASON_LENGTH))
    box.close(pb.Usage(), pb.Timing())
    found = (await box.take()).deltas
    assert [(each.choice, list(each.token_ids)) for each in found] == [(1, [1, 2]), (0, [1, 2])]
    assert [each.HasField("usage") for each in found] == [False, True]


async def test_a_reader_that_takes_nothing_gets_messages_of_bounded_length() -> None:
    box = outbox(ALWAYS_S)
    for index in range(5000):
        put(box, delta(index))
    box.put(delta(5000, finish_reason=pb.FINISH_REASON_LENGTH))
    box.close(pb.Usage(), pb.Timing())
    messages = []
    while (message := await box.take()) is not None:
        messages.append(message)
    assert [len(message.deltas) for message in messages] == [1] * len(messages)
    assert max(len(message.deltas[0].token_ids) for message in messages) <= 1024
    assert [token for message in messages for token in message.deltas[0].token_ids] == list(range(5001))
    assert len(messages) < 7


@pytest.mark.parametrize(("interval_s", "groups"), [(0.02, 4), (0.04, 4), (0.1, 5), (0.4, 20)])
def test_held_messages_of_streams_that_began_apart_leave_together_and_no_later(
    interval_s: float, groups: int
) -> None:
    began = [100.0 + interval_s * index / 128 for index in range(128)]
    due = [leaves_at(at, interval_s) for at in began]
    assert len({round(at, 6) for at in due}) <= groups + 1
    held = [left - at for at, left in zip(began, due, strict=True)]
    assert interval_s * 3 / 4 - 0.001 <= min(held) <= max(held) <= interval_s + 0.001


def test_streams_with_different_intervals_leave_together_too() -> None:
    often, seldom = 100.0, 100.0
    others = set()
    for _ in range(20):
        often = leaves_at(often, 0.02)
        others.add(round(often, 6))
    for _ in range(4):
        seldom = leaves_at(seldom, 0.1)
        assert round(seldom, 6) in others


@pytest.mark.parametrize("late_s", [-0.0009, 0.0, 0.003])
def test_a_stream_keeps_its_interval_however_early_or_late_its_timer_fires(late_s: float) -> None:
    for interval_s in (0.02, 0.04, 0.1):
        due = [leaves_at(100.0, interval_s)]
        for _ in range(20):
            due.append(leaves_at(due[-1] + late_s, interval_s))
        assert due[-1] - due[0] == pytest.approx(20 * interval_s)


def test_a_short_interval_is_kept_as_it_is() -> None:
    assert leaves_at(100.0021, 0.004) == 100.0021 + 0.004


def test_by_default_few_streams_get_each_token_and_many_an_event_each_100_ms() -> None:
    config = WorkerConfig("i-1", 1, spec_file=Path(), socket=Path())
    for streams, interval_s in ((12, 0.0096), (125, 0.1), (1000, 0.1)):
        spacing = Spacing(config.messages_per_s, config.longest_hold_ms / 1e3, lambda many=streams: many)
        assert spacing.interval_s(0.0) == pytest.approx(interval_s)
        assert spacing.interval_s(50.0) <= 0.025


def test_messages_come_further_apart_with_more_streams_up_to_a_bound() -> None:
    streams = iter((1, 10, 40, 400))
    spacing = Spacing(1000.0, 0.04, lambda: next(streams))
    assert [spacing.interval_s(0.0) for _ in range(4)] == [0.001, 0.01, 0.04, 0.04]


def test_an_itl_slo_bounds_the_hold_to_its_half() -> None:
    spacing = Spacing(1000.0, 0.04, lambda: 400)
    assert spacing.interval_s(30.0) == 0.015
    assert spacing.interval_s(500.0) == 0.04


async def test_what_was_parsed_is_joined_with_its_text() -> None:
    box = outbox(NEVER_S)
    first = pb.ToolCallDelta(index=0, id="c", name="f", arguments="{")
    put(
        box,
        delta(0, parsed=pb.ParsedDelta(content="a", tool_calls=[first])),
        delta(1, parsed=pb.ParsedDelta(tool_calls=[pb.ToolCallDelta(index=0, arguments="}")])),
        delta(2),
        delta(3, parsed=pb.ParsedDelta(content="b")),
    )
    (sent,) = (await box.take()).deltas
    whole = pb.ToolCallDelta(index=0, id="c", name="f", arguments="{}")
    assert sent == delta(0, 4, parsed=pb.ParsedDelta(content="ab", tool_calls=[whole]))
