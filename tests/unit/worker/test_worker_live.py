"""How a worker splits its live requests by class although its engine counts without classes."""

from __future__ import annotations

import asyncio

import pytest

from services.worker.live import LiveRequest, LiveRequests


@pytest.fixture
async def live() -> LiveRequests:
    return LiveRequests()


def make(
    name: str, *, batch: bool = False, slots: int = 1, priority: int = 0, output: bool = False
) -> LiveRequest:
    task = asyncio.current_task()
    assert task is not None
    return LiveRequest(
        request_id=name, attempt=0, batch=batch, slots=slots, priority=priority, itl_slo_ms=0.0, task=task,
        has_output=output,
    )  # fmt: skip


def split(
    live: LiveRequests, *, running: int, waiting: int, batch_size: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    found = live.occupancy(engine_running=running, engine_waiting=waiting, batch_size=batch_size)
    return (
        (found.running.interactive, found.running.batch),
        (found.waiting.interactive, found.waiting.batch),
    )


async def test_those_without_output_and_least_urgent_wait(live: LiveRequests) -> None:
    live.add(make("runs", batch=True, priority=10_000, output=True))
    live.add(make("last", batch=True, priority=10_000))
    live.add(make("next"))
    assert split(live, running=2, waiting=1, batch_size=2) == ((1, 1), (0, 1))
    assert split(live, running=1, waiting=2, batch_size=1) == ((0, 1), (1, 1))


async def test_a_request_that_the_engine_has_not_published_takes_a_free_slot(live: LiveRequests) -> None:
    live.add(make("first"))
    live.add(make("second"))
    assert split(live, running=0, waiting=0, batch_size=1) == ((1, 0), (1, 0))
    assert split(live, running=0, waiting=0, batch_size=8) == ((2, 0), (0, 0))


async def test_a_lowered_batch_size_makes_nobody_wait_who_runs(live: LiveRequests) -> None:
    for index in range(4):
        live.add(make(f"r{index}", output=True))
    assert split(live, running=4, waiting=0, batch_size=1) == ((4, 0), (0, 0))


async def test_choices_count_as_slots(live: LiveRequests) -> None:
    several = make("several", batch=True, slots=3)
    live.add(several)
    assert split(live, running=1, waiting=2, batch_size=1) == ((0, 1), (0, 2))
    live.remove(several)
    assert live.slots == [0, 0]
    assert live.idle.is_set()
    assert several.ended.is_set()


async def test_a_request_that_only_waits_for_its_reader_holds_no_slot(live: LiveRequests) -> None:
    live.add(make("unread", batch=True, output=True))
    live.add(make("runs", output=True))
    assert split(live, running=1, waiting=0, batch_size=2) == ((1, 0), (0, 0))
    assert split(live, running=0, waiting=0, batch_size=2) == ((0, 0), (0, 0))


async def test_engine_figures_of_requests_that_are_gone_count_for_nothing(live: LiveRequests) -> None:
    assert split(live, running=1, waiting=3, batch_size=1) == ((0, 0), (0, 0))


def tightest(live: LiveRequests, *, running: int, waiting: int) -> float:
    found = live.occupancy(engine_running=running, engine_waiting=waiting, batch_size=running)
    return found.tightest_itl_slo_ms


async def test_the_tightest_slo_of_those_that_run_and_have_one(live: LiveRequests) -> None:
    assert tightest(live, running=0, waiting=0) == 0
    for name, slo, output in (("a", 0.0, True), ("b", 90.0, True), ("c", 70.0, True), ("d", 40.0, False)):
        request = make(name, output=output)
        request.itl_slo_ms = slo
        live.add(request)
    assert tightest(live, running=1, waiting=3) == 0, "the one that runs has none"
    assert tightest(live, running=3, waiting=1) == 70
    assert tightest(live, running=4, waiting=0) == 40
