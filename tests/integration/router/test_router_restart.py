"""A router process that is started again while no controller can be asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.internal.v1 import control_pb2, router_pb2, router_pb2_grpc
from chiron.v1 import inference_pb2 as pb
from services.router.table_file import read_table
from tests.support.chiron_command import chiron
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    worker = await FakeWorker("a", batch_size=100).start()
    yield worker
    await worker.stop()


@pytest.fixture
async def kept(worker: FakeWorker, tmp_path: Path) -> Path:
    """The file that a router has left behind: term 5, epoch 2, model `m` on the worker."""
    path = tmp_path / "table"
    controller = await FakeRouterController(term=5).start()
    async with router_process(tmp_path, controller.address, router_id="before", table_file=path) as router:
        await controller.hellos.get()
        controller.add("m", [worker])
        controller.send(models=controller.table.models, instances=controller.table.instances)
        await eventually(lambda: path.exists() and epoch_of(path) == 2)
        # Nothing may depend on an orderly end.
        await router.kill()
    await controller.stop()
    return path


def epoch_of(path: Path) -> int:
    found = read_table(path)
    return found.table.epoch if found is not None else 0


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


async def state(router: RouterProcess) -> router_pb2.GetRouterStateResponse:
    stub = router_pb2_grpc.RouterServiceStub(router.channel)
    return await stub.GetRouterState(router_pb2.GetRouterStateRequest())


async def routed_to(router: RouterProcess, model: str = "m") -> str:
    answer = await router.stub.Route(pb.RouteRequest(model=model), timeout=10, wait_for_ready=True)
    return answer.instance_id


async def test_it_serves_from_the_table_on_disk_and_says_so(kept: Path, tmp_path: Path) -> None:
    async with router_process(tmp_path, NOBODY, router_id="after", table_file=kept) as router:
        assert await routed_to(router) == "a"
        table = (await state(router)).table
        health = await health_pb2_grpc.HealthStub(router.channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert (table.term, table.epoch, table.models, table.instances) == (5, 2, 1, 1)
    assert table.from_file
    assert table.age_ms > 0
    assert table.file == str(kept)
    assert f"serving from {kept} until a controller is heard: term 5, epoch 2" in router.log


async def test_a_controllers_newer_table_replaces_it_also_on_disk(
    kept: Path, tmp_path: Path, worker: FakeWorker
) -> None:
    controller = FakeRouterController(term=5)
    controller.table.epoch = 7
    controller.add("other", [worker])
    await controller.start()
    async with router_process(tmp_path, controller.address, router_id="after", table_file=kept) as router:
        # It says which table it holds; the controller decides whether to send another.
        assert (await controller.hellos.get()).epoch == 2
        assert await routed_to(router, "other") == "a"
        table = (await state(router)).table
        assert (table.epoch, table.age_ms, table.from_file) == (7, 0.0, False)
        await eventually(lambda: epoch_of(kept) == 7)
        await controller.stop()
        await eventually(lambda: _aged(router))
    # Only a file that was read at the start counts as one.
    assert epoch_of(kept) == 7


async def _fresh(router: RouterProcess, epoch: int) -> bool:
    table = (await state(router)).table
    return (table.epoch, table.age_ms) == (epoch, 0.0)


async def _aged(router: RouterProcess) -> bool:
    table = (await state(router)).table
    return table.age_ms > 0 and not table.from_file


async def test_a_controller_of_an_older_term_is_refused(kept: Path, tmp_path: Path) -> None:
    deposed = FakeRouterController(term=4)
    deposed.add("wrong")
    await deposed.start()
    async with router_process(tmp_path, deposed.address, router_id="after", table_file=kept) as router:
        # It asks again and is told the same.
        for _ in range(2):
            await deposed.hellos.get()
        assert await routed_to(router) == "a"
        table = (await state(router)).table
    await deposed.stop()
    assert (table.term, table.from_file) == (5, True)
    assert "it is of term 4, and this router holds one of term 5" in router.log
    assert epoch_of(kept) == 2


async def test_a_damaged_file_is_one_warning_and_the_router_waits_for_a_controller(
    kept: Path, tmp_path: Path, worker: FakeWorker
) -> None:
    damage(kept)
    controller = FakeRouterController(term=5)
    controller.add("m", [worker])
    await controller.start()
    async with router_process(tmp_path, controller.address, router_id="after", table_file=kept) as router:
        assert (await controller.hellos.get()).epoch == 0
        assert await routed_to(router) == "a"
        await eventually(lambda: epoch_of_sound(kept) == 1)
    await controller.stop()
    assert router.log.count(f"{kept} is damaged") == 1


def epoch_of_sound(path: Path) -> int:
    try:
        return epoch_of(path)
    except Exception:
        return 0


async def test_strangers_are_not_told_what_a_router_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The peer's address is what gRPC says it is; only its reading is at stake here.
    from services.router.state_servicer import _OWN_HOST

    peers = {
        "ipv4:127.0.0.1:4711": True,
        "ipv6:%5B::1%5D:4711": True,
        "unix:/run/x": True,
        "ipv4:10.0.0.1:4711": False,
        "ipv4:1.127.0.0:1": False,
        "ipv6:%5Bfe80::1%5D:4711": False,
        "ipv6:%5B::1:2%5D:4711": False,
    }
    assert {peer: peer.startswith(_OWN_HOST) for peer in peers} == peers


async def test_an_epoch_gap_from_a_kept_table_asks_for_a_new_one(
    kept: Path, tmp_path: Path, worker: FakeWorker
) -> None:
    controller = await FakeRouterController(term=5).start()
    controller.table.epoch = 2
    controller.add("m", [worker])
    async with router_process(tmp_path, controller.address, router_id="after", table_file=kept) as router:
        assert (await controller.hellos.get()).epoch == 2
        await eventually(lambda: _fresh(router, 2))
        controller.skip_epoch()
        controller.add("added", [worker])
        controller.send(models=[control_pb2.RoutedModel(name="unseen")])
        assert (await controller.hellos.get()).epoch == 2
        await eventually(lambda: _fresh(router, 4))
        assert await routed_to(router, "added") == "a"
    await controller.stop()


async def test_the_command_line_tells_what_it_serves_from(kept: Path, tmp_path: Path) -> None:
    async with router_process(tmp_path, NOBODY, router_id="after", table_file=kept) as router:
        assert await routed_to(router) == "a"
        told = await chiron("router", router.address)
        as_json = await chiron("router", router.address, "--json")
        address = router.address
    assert (told.status, told.stderr) == (0, "")
    assert f"read from {kept}" in told.stdout
    assert json.loads(as_json.stdout)["table"]["from_file"] is True
    gone = await chiron("router", address)
    assert gone.status == 1
    assert gone.stderr.startswith(f"error: router {address}: ")
