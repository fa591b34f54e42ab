"""What keys have of their own lies in etcd: it outlives the controller that wrote it, and reaches routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chiron.cluster.access_admin import AccessAdmin
from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1.access_pb2 import KeyDefaults, KeyLimits, KeyTerms, LimitUse, Tenant
from tests.support.controller_process import controllers
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.wait import eventually

TERMS = KeyTerms(limits=KeyLimits(concurrent=7), defaults=KeyDefaults(priority=0))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


async def test_terms_outlive_the_controller_and_travel_as_changes(etcd: EtcdServer, tmp_path: Path) -> None:
    async with controllers(tmp_path, [etcd.endpoint], "store.prefix=/chiron/keys", count=1) as alone:
        [process] = alone.processes
        await alone.leader()
        async with AccessAdmin(process.address) as admin:
            await admin.apply_tenant(Tenant(name="web"))
            key_id = (await admin.create_key("web", terms=TERMS)).key.key_id
        await process.kill()
        await process.start()
        await alone.leader()
        async with AccessAdmin(process.address) as admin, open_channel(process.address) as channel:
            assert [(key.key_id, key.terms) for key in await admin.list_keys()] == [(key_id, TERMS)]
            stub = control_pb2_grpc.ControlServiceStub(channel)
            left = asyncio.Event()
            told = stub.ConnectRouter(_router(key_id, left))
            async with asyncio.timeout(20):
                while not (first := await told.read()).HasField("snapshot"):
                    pass
                [known] = first.snapshot.keys
                assert known.terms == TERMS
                await admin.set_key(key_id, KeyTerms(limits=KeyLimits(concurrent=9)), ["limits.concurrent"])
                while not (delta := (await told.read()).delta).keys:
                    pass
                assert [key.terms.limits.concurrent for key in delta.keys] == [9]
                [use] = await eventually(lambda: near(admin))
                assert (use.limit, use.share, use.router_id) == ("concurrent", 1.0, "r1")
            left.set()
            told.cancel()


async def near(admin: AccessAdmin) -> list[LimitUse]:
    return list((await admin.list_keys())[0].near_limits)


async def _router(key_id: str, left: asyncio.Event) -> AsyncIterator[control_pb2.ConnectRouterRequest]:
    yield control_pb2.ConnectRouterRequest(
        hello=control_pb2.RouterHello(router_id="r1", address="127.0.0.1:1")
    )
    report = control_pb2.RouterReport(sequence=1, interval_ms=1000)
    report.near_limits.add(key_id=key_id, use=LimitUse(limit="concurrent", share=1.0))
    yield control_pb2.ConnectRouterRequest(report=report)
    await left.wait()
