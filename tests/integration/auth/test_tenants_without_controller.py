"""A router that asks who calls, started again while no controller can be asked."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from chiron.auth.api_keys import NewKey
from chiron.internal.v1 import control_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import reason_of
from chiron.v1 import access_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.table_file import read_table
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually

NOBODY = "127.0.0.1:1"


async def routed_to(router: RouterProcess, key: str) -> str:
    request = pb.RouteRequest(model="m")
    call = router.stub.Route(request, timeout=10, wait_for_ready=True, metadata=bearer_metadata(key))
    return str((await call).instance_id)


async def test_tenants_keys_and_revocations_are_kept_with_the_table(tmp_path: Path) -> None:
    path, good, revoked, later = tmp_path / "table", NewKey.draw(), NewKey.draw(), NewKey.draw()
    worker = await FakeWorker("a").start()
    controller = await FakeRouterController().start()
    try:
        controller.add("m", [worker])
        controller.table.tenants.append(access_pb2.Tenant(name="acme", models=["m"]))
        for key in (good, revoked):
            routed = control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="acme")
            controller.table.keys.append(routed)
        settings = {"table_file": path, "auth.require": "true"}
        async with router_process(tmp_path, controller.address, router_id="before", **settings) as router:
            await controller.hellos.get()
            gone = control_pb2.RoutedKey(
                key_id=revoked.key_id, digest=revoked.digest, tenant="acme", revoked=True
            )
            controller.send(keys=[gone])
            await eventually(lambda: path.exists() and (found := read_table(path)) and found.table.epoch == 2)
            await router.kill()
        await controller.stop()
        async with router_process(tmp_path, NOBODY, router_id="after", **settings) as router:
            assert await routed_to(router, good.text) == "a"
            refused = {
                "": "CREDENTIALS_MISSING",
                revoked.text: "KEY_REVOKED",
                # One that may have been made since the table was kept is no wrong one yet.
                later.text: "RETRY_ELSEWHERE",
            }
            for key, reason in refused.items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await routed_to(router, key)
                assert reason_of(caught.value) == reason
    finally:
        await worker.stop()
        await controller.stop()
