"""Requests go to the instances of their class first, and their order holds from the door to the engine."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chiron.client import Client
from chiron.internal.v1 import control_pb2
from chiron.v1 import types_pb2
from tests.support.wait import eventually
from tests.support.worker_process import worker_process

SIM = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 1,
    "engineArgs": {"load_time_s": 0},
}
ENDLESS: dict[str, Any] = {"model": "m", "prompt": "Tell me a tale.", "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture
def start(controller, start_router, stack: AsyncExitStack, tmp_path_factory):
    """Starts a worker of each role, named after it, and a router in front of them."""

    async def start(*roles: str, max_waiting: int = 0):
        controller.add("m", spec_version=1)
        started = [
            await stack.enter_async_context(
                worker_process(
                    tmp_path_factory.mktemp(role), SIM, instance_id=role, role=role, max_waiting=max_waiting
                )
            )
            for role in roles
        ]
        for role, worker in zip(roles, started, strict=True):
            await worker.until()
            controller.table.instances.append(
                control_pb2.RoutedInstance(
                    instance_id=role,
                    incarnation=7,
                    model="m",
                    address=worker.address,
                    role=types_pb2.Role.Value(f"ROLE_{role.upper()}"),
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            )
        router = await start_router(worker_queue=max_waiting)
        await eventually(
            lambda: sum(one.usable for one in router.core._instances.values()) == len(roles),
            what="all are usable",
        )
        return router

    return start


class Asking:
    """Requests that run until they are stopped."""

    def __init__(self, router: Any, client: Client) -> None:
        self._router = router
        self._client = client
        self._tasks: list[asyncio.Task[object]] = []

    def ask(self, kind: str) -> None:
        self._tasks.append(asyncio.create_task(self._client.complete(**ENDLESS, request_class=kind)))

    async def running(self, **expected: tuple[int, int]) -> None:
        """Waits until each of these instances runs so many interactive and batch requests."""

        def seen() -> dict[str, tuple[int, int]]:
            return {
                key: (one.load.running.interactive, one.load.running.batch)
                for key, one in self._router.core._instances.items()
                if one.load is not None
            }

        await eventually(lambda: seen() == expected, what=f"{expected}; it is {seen()}")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.running(interactive=(0, 0), mixed=(0, 0), batch=(0, 0))


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_each_class_takes_its_own_instances_first_then_mixed_ones(start, lookaside: bool) -> None:
    router = await start("interactive", "mixed", "batch")
    async with Client(router.address, lookaside=lookaside) as client:
        asking = Asking(router, client)
        asking.ask("interactive")
        await asking.running(interactive=(1, 0), mixed=(0, 0), batch=(0, 0))
        asking.ask("interactive")
        await asking.running(interactive=(1, 0), mixed=(1, 0), batch=(0, 0))
        asking.ask("interactive")
        await router.queued(1)
        await asking.running(interactive=(1, 0), mixed=(1, 0), batch=(0, 0))
        await asking.stop()

        asking.ask("batch")
        await asking.running(interactive=(0, 0), mixed=(0, 0), batch=(0, 1))
        asking.ask("batch")
        await asking.running(interactive=(0, 0), mixed=(0, 1), batch=(0, 1))
        asking.ask("batch")
        await router.queued(0, 1)
        await asking.running(interactive=(0, 0), mixed=(0, 1), batch=(0, 1))
        await asking.stop()


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_priority_holds_from_the_door_to_the_engines_queue(start, lookaside: bool) -> None:
    """All wait in the engine but the first, so that its order is what shows."""
    router = await start("interactive", max_waiting=8)
    priorities = {"c": 7, "a": -900, "e": 1000, "b": 0, "d": 7}
    ended: list[str] = []
    async with Client(router.address, lookaside=lookaside) as client:
        occupant = asyncio.create_task(client.complete(**ENDLESS))
        instance = router.core._instances["interactive"]
        await eventually(lambda: instance.load.running.interactive == 1)

        async def ask(name: str, priority: int) -> None:
            request = {**ENDLESS, "max_tokens": 3, "priority": priority}
            await client.complete(**request)
            ended.append(name)

        tasks = []
        for count, (name, priority) in enumerate(priorities.items(), 1):
            tasks.append(asyncio.create_task(ask(name, priority)))
            await eventually(lambda count=count: instance.load.waiting.interactive == count)
        assert router.waiting() == (0, 0)
        occupant.cancel()
        await asyncio.gather(*tasks)
    assert ended == ["a", "b", "c", "d", "e"]
