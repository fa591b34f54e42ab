"""How results are put into messages: in their order, small ones together, large ones in parts."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from chiron.batch import wire
from chiron.batch.records import ItemState, Result
from chiron.v1 import batch_pb2 as pb
from services.router.batch.results import PART_BYTES, messages_of


def result(number: int, length: int) -> Result:
    return Result(
        number=number,
        index=number - 1,
        custom_id=str(number),
        state=ItemState.SUCCEEDED,
        result=wire.succeeded(pb.ItemOutput(choices=[pb.ItemChoice(text="x" * length)])),
        recorded=1.0,
        late=False,
        attempts=1,
    )


def joined(messages: Iterable[pb.ReadResultsResponse]) -> list[pb.ItemResult]:
    found: list[pb.ItemResult] = []
    parts: list[bytes] = []
    for message in messages:
        assert not (message.results and message.part)
        assert message.ByteSize() < 2 * PART_BYTES
        found += message.results
        if message.part or message.last_part:
            parts.append(message.part)
        if message.last_part:
            found.append(pb.ItemResult.FromString(b"".join(parts)))
            parts.clear()
    assert not parts
    return found


@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("parts", [3, 5])
def test_a_large_result_comes_in_parts_to_the_last_byte(parts: int, beyond: int) -> None:
    wanted = parts * PART_BYTES + beyond
    length = wanted - wire.item_result(result(1, wanted)).ByteSize() + wanted
    large = result(1, length)
    assert wire.item_result(large).ByteSize() == wanted
    messages = list(messages_of([large]))
    assert len(messages) == parts + (beyond > 0)
    assert [message.last_part for message in messages] == [False] * (len(messages) - 1) + [True]
    assert joined(messages) == [wire.item_result(large)]


def test_small_results_share_messages_and_keep_their_order_around_large_ones() -> None:
    lengths = [10, 400_000, 400_000, 400_000, 3 * PART_BYTES, 0, 0, PART_BYTES - 20, 10]
    results = [result(number, length) for number, length in enumerate(lengths, 1)]
    messages = list(messages_of(results))
    assert joined(messages) == [wire.item_result(one) for one in results]
    shared = [[one.number for one in message.results] for message in messages if message.results]
    assert shared == [[1, 2, 3], [4], [6, 7], [8], [9]]
    assert list(messages_of([])) == []
