"""What an interactive request lacks, worked by hand; and the quick look agrees with the long one."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineInfo, EngineOutput, EngineStats
from services.worker.live import LiveRequest, LiveRequests, Preempted
from services.worker.meter import Meter
from services.worker.pace import Pace
from services.worker.room import Missing, candidates, missing, plenty

BLOCK = 16


def info(blocks: int = 1000) -> EngineInfo:
    return EngineInfo(
        max_context_tokens=4096,
        kv_capacity_tokens=blocks * BLOCK,
        max_batch_size=64,
        max_step_token_budget=2048,
        vocabulary_size=1000,
        kv_block_size=BLOCK,
    )


def stats(
    running: int, waiting: int, *, batch_size: int, used_blocks: int = 0, blocks: int = 1000
) -> EngineStats:
    return EngineStats(running, waiting, used_blocks / blocks, batch_size, 0, 0, 0, 0, 0, 0)


def emit(request: LiveRequest, tokens: int, *, preemptions: int = 0) -> None:
    delta = ChoiceDelta(0, [7] * tokens, "", [0] * tokens)
    request.pace.add(EngineOutput([delta], 1.0, preemptions=preemptions))


class World:
    """Live requests, made short."""

    def __init__(self) -> None:
        self.live = LiveRequests()
        self.task = asyncio.current_task()

    def add(
        self, name: str, *, batch: bool = False, prompt: int = 100, tokens: int = 0, slots: int = 1
    ) -> LiveRequest:
        assert self.task is not None
        request = LiveRequest(
            name, 0, batch, slots, 10_000 * batch, 0.0, self.task,
            pace=Pace(Meter(), 0.0, 0.0, prompt), prompt_tokens=prompt,
        )  # fmt: skip
        self.live.add(request)
        if tokens:
            emit(request, tokens)
            self.live.begun(request)
        return request


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_slot_is_missing_where_batch_work_has_them_all(world: World) -> None:
    for index in range(3):
        world.add(f"b{index}", batch=True, tokens=20)
    came = world.add("i")
    assert missing(world.live, came, stats(3, 0, batch_size=3), info()) == Missing(1, 0)
    assert missing(world.live, came, stats(3, 0, batch_size=4), info()) == Missing(0, 0)
    # A lowered batch size drains; who comes waits for as many as are over it.
    assert missing(world.live, came, stats(3, 0, batch_size=1), info()) == Missing(3, 0)


async def test_those_who_wait_already_count_and_later_ones_do_not(world: World) -> None:
    world.add("b0", batch=True, tokens=20)
    world.add("b1", batch=True, tokens=20)
    world.add("i0")
    came = world.add("i1")
    world.add("i2")
    assert missing(world.live, came, stats(2, 0, batch_size=2), info()) == Missing(2, 0)


async def test_a_slot_that_is_being_freed_is_not_freed_twice(world: World) -> None:
    victim = world.add("b0", batch=True, tokens=20)
    world.add("b1", batch=True, tokens=20)
    first = world.add("i0")
    published = stats(2, 0, batch_size=2)
    assert missing(world.live, first, published, info()).slots == 1
    victim.preempted = Preempted(0.0, first)
    assert missing(world.live, first, published, info()).slots == 0
    second = world.add("i1")
    assert missing(world.live, second, published, info()).slots == 1


async def test_batch_work_that_waits_has_the_slots_that_are_left(world: World) -> None:
    world.add("b0", batch=True, tokens=20)
    world.add("b1", batch=True)
    came = world.add("i")
    assert missing(world.live, came, stats(2, 0, batch_size=2), info()).slots == 1
    assert missing(world.live, came, stats(2, 0, batch_size=3), info()).slots == 0


async def test_kv_blocks_are_missing_although_slots_are_free(world: World) -> None:
    # 100 and 21 tokens: in its 8th block, far from its end.
    world.add("b0", batch=True, tokens=21)
    came = world.add("i", prompt=160)
    assert missing(world.live, came, stats(1, 1, batch_size=9, used_blocks=989), info()).kv_blocks == 0
    assert missing(world.live, came, stats(1, 1, batch_size=9, used_blocks=990), info()).kv_blocks == 1
    freed = missing(world.live, came, stats(1, 1, batch_size=9, used_blocks=1000), info(), 4)
    assert freed.kv_blocks == 7


async def test_the_blocks_that_running_requests_take_next_are_left_to_them(world: World) -> None:
    # 112 tokens fill seven blocks: the next step takes one more.
    world.add("b0", batch=True, tokens=12)
    came = world.add("i", prompt=160)
    assert missing(world.live, came, stats(1, 1, batch_size=9, used_blocks=989), info()).kv_blocks == 1


async def test_an_interactive_request_that_runs_already_has_its_blocks(world: World) -> None:
    world.add("b0", batch=True, tokens=21)
    world.add("i0", prompt=1600)
    came = world.add("i1", prompt=15)
    # The engine lets one wait: the newest.
    assert missing(world.live, came, stats(2, 1, batch_size=9, used_blocks=999), info()).kv_blocks == 0
    both = missing(world.live, came, stats(1, 2, batch_size=9, used_blocks=999), info())
    assert both.kv_blocks == 101 + 1 - 1


async def test_requests_that_have_ended_hold_nothing(world: World) -> None:
    ended = world.add("b0", batch=True, tokens=20)
    world.add("b1", batch=True, tokens=20)
    came = world.add("i")
    ended.done = True
    assert missing(world.live, came, stats(1, 0, batch_size=2), info()) == Missing(0, 0)
    assert [each.request_id for each in candidates(world.live, info())] == ["b1"]


async def test_candidates_are_told_as_they_are(world: World) -> None:
    one = world.add("b", batch=True, prompt=100, tokens=30, slots=2)
    world.add("young", batch=True)
    world.add("i", tokens=3)
    emit(one, 5, preemptions=2)
    one.deadline = 77.0
    (found,) = candidates(world.live, info())
    assert (found.request_id, found.deadline_s, found.slots) == ("b", 77.0, 2)
    assert (found.computed_tokens, found.kv_blocks) == (135, 9)
    # Preempted in between: five tokens since it got its slot again.
    assert (found.preemptions, found.progress_tokens) == (2, 5)


async def test_two_outputs_under_way_do_not_mean_that_a_request_runs_again(world: World) -> None:
    one = world.add("b", batch=True, tokens=30)
    one.preempted = Preempted(0.0)
    assert [one.runs_again() for _ in range(3)] == [False, False, True]
    assert one.decoding


async def test_preemptions_of_earlier_attempts_count() -> None:
    origin = pb.StreamOrigin(spec_version=1, preemptions=2)
    pace = Pace(Meter(), 0.0, 0.0, 10, pb.ResumeState(delivered_token_ids=[1, 2], origin=origin))
    assert (pace.preemptions, pace.tokens, pace.slot_tokens) == (2, 2, 2)
    pace.add(EngineOutput([ChoiceDelta(0, [3], "", [0])], 1.0, preemptions=1))
    assert pace.preemptions == pace.timing("i").preemptions == 3


one_request = st.tuples(st.booleans(), st.integers(1, 200), st.integers(0, 40), st.integers(1, 2))


@given(st.lists(one_request, max_size=8), st.integers(1, 12), st.integers(0, 80), st.integers(1, 200))
def test_where_the_quick_look_finds_plenty_nothing_is_missing(
    requests: list[tuple[bool, int, int, int]], batch_size: int, free: int, prompt: int
) -> None:
    async def check() -> None:
        world = World()
        for index, (batch, length, tokens, slots) in enumerate(requests):
            world.add(f"r{index}", batch=batch, prompt=length, tokens=tokens, slots=slots)
        came = world.add("i", prompt=prompt)
        total = sum(world.live.slots)
        published = stats(
            min(total, batch_size), max(0, total - batch_size),
            batch_size=batch_size, used_blocks=80 - free, blocks=80,
        )  # fmt: skip
        if plenty(world.live, published, info(80)):
            assert not missing(world.live, came, published, info(80))
        for request in world.live:
            world.live.remove(request)
        assert world.live.fresh_tokens == 0

    asyncio.run(check())
