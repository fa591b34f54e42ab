"""One process's part in the election, on a real etcd whose answers can be lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

from chiron.store import UnavailableError
from chiron.store.etcd import Connection, EtcdStore
from chiron.store.etcd.methods import LEASE_REVOKE, RESIGN
from services.global_controller.candidacy import Candidacy
from services.global_controller.config import ControllerConfig
from services.global_controller.controller import Controller
from services.global_controller.seat import Seat
from services.global_controller.store_config import StoreConfig
from services.global_controller.store_health import StoreHealth
from tests.support.etcd_proxy import EtcdProxy, Fate
from tests.support.etcd_server import etcd_members, settings
from tests.support.wait import eventually


class BriefReign:
    """Stands in for a controller whose store fails it when a test says so."""

    term = 1

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def start(self) -> None:
        pass

    async def run(self) -> None:
        await self.over.wait()
        raise UnavailableError("etcd is away")

    def close(self) -> None:
        pass


async def test_a_lease_that_etcd_could_not_be_told_to_end_does_not_hold_up_the_next_election(
    tmp_path: Path,
) -> None:
    reigns: list[BriefReign] = []

    def make() -> Controller:
        reigns.append(BriefReign())
        return cast(Any, reigns[-1])

    with etcd_members(tmp_path / "etcd") as [etcd]:
        async with EtcdProxy(etcd.endpoint) as proxy:
            store = EtcdStore(Connection(settings(proxy.endpoint)), "/candidacy")
            seat = Seat("127.0.0.1:1", StoreHealth("etcd", time.monotonic))
            # The lease by itself would last for longer than the test.
            config = ControllerConfig(store=StoreConfig(lease_s=600, history_s=0))
            campaigning = asyncio.create_task(Candidacy(config, store, seat, make).run())
            await eventually(lambda: seat.controller is not None)

            proxy.fate = lambda path, request: (
                Fate.LOSE_REQUEST if path in (RESIGN.path, LEASE_REVOKE.path) else Fate.PASS
            )
            reigns[0].over.set()
            await eventually(lambda: proxy.calls[LEASE_REVOKE.path] > 1)
            assert len(reigns) == 1
            proxy.fate = lambda path, request: Fate.PASS
            await eventually(lambda: len(reigns) == 2 and seat.controller is not None)

            campaigning.cancel()
            await asyncio.gather(campaigning, return_exceptions=True)
            await store.close()
