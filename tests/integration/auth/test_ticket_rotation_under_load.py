"""Real processes under load while keys rotate, and while the controller goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.process import ServiceProcess
from chiron.v1 import cluster_pb2
from tests.support.wait import eventually


def toy() -> cluster_pb2.ModelSpec:
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=2)
    spec.engine_args.update({"load_time_s": 0})
    return spec


class Load:
    """Requests one after another in a few tasks, half of them proxied; any failure is kept."""

    def __init__(self, routers: list[str]) -> None:
        self._clients = [Client(routers, lookaside=direct, max_attempts=1) for direct in (True, False)]
        self._tasks: list[asyncio.Task[None]] = []
        self.done = 0
        self.failures: list[Exception] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(client)) for client in self._clients * 2]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def _ask(self, client: Client) -> None:
        while True:
            try:
                await client.complete(model="toy", prompt="Tell me.", max_tokens=4, timeout_s=20.0)
                self.done += 1
            except Exception as error:
                self.failures.append(error)

    async def more(self, count: int) -> None:
        """Waits for this many more answers; at the first failure it gives up."""
        goal = self.done + count
        await eventually(lambda: self.done >= goal or self.failures, within_s=30.0)
        assert not self.failures


def rotations(cluster: LocalCluster) -> int:
    return (cluster.directory / "controller.log").read_text().count("ticket keys: rotated")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    settings = {"controller": {"ticket_key_period_s": "0.5", "liveness_timeout_s": "2.5"}}
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path / "run", settings=settings) as one:
        await one.apply([toy()])
        await one.wait_ready()
        yield one


async def test_keys_rotate_under_load_without_a_failed_request(cluster: LocalCluster) -> None:
    async with Load(cluster.router_addresses) as load:
        await load.more(20)
        seen = rotations(cluster)
        while rotations(cluster) < seen + 4:
            await load.more(5)


async def test_a_controller_without_memory_goes_on_with_the_keys_that_serve(
    cluster: LocalCluster,
) -> None:
    async with Load(cluster.router_addresses) as load:
        await load.more(10)
        address = cluster.controller_address
        old = cluster.processes["controller"]
        old.kill()
        await old.wait()
        await load.more(30)
        new = await ServiceProcess.start(
            "controller",
            "services.global_controller",
            log=cluster.directory / "second.log",
            settings={"listen": address, "ticket_key_period_s": "0.5", "liveness_timeout_s": "2.5"},
        )
        cluster.processes["controller"] = new
        log = cluster.directory / "second.log"
        while log.read_text().count("ticket keys: rotated") < 3:
            await load.more(5)
        assert "ticket keys: taken over" in log.read_text()
    with contextlib.suppress(FileNotFoundError):
        assert "Traceback" not in log.read_text()
