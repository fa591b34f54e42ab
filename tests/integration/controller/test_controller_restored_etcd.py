"""etcd restored from a backup under controllers that run: what it holds counts, and changes are taken."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.controller_process import controllers, spec
from tests.support.etcd_server import etcd_members
from tests.support.wait import eventually


async def test_controllers_go_on_with_what_a_restored_etcd_holds(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd") as [etcd]:
        # The leader's lease outlives the restoration, and with it a reign whose writes are undone.
        async with (
            controllers(tmp_path, [etcd.endpoint], count=2, lease_s=60) as both,
            both.admin(timeout_s=40.0) as admin,
        ):
            leader = await both.leader()
            await admin.apply_model(spec("kept"))
            backup = tmp_path / "backup"
            etcd.control("snapshot", "save", str(backup))
            await admin.apply_model(spec("undone"))
            await admin.apply_model(spec("kept", max_instances=3))
            etcd.restore(backup)

            async def shows_what_is_held() -> bool:
                models = {one.spec.name: one.spec.max_instances for one in await admin.list_models()}
                return models == {"kept": 0}

            await eventually(shows_what_is_held, within_s=40.0)
            await admin.apply_model(spec("kept", max_instances=2))
            await admin.apply_model(spec("new"))
            assert sorted(one.spec.name for one in await admin.list_models()) == ["kept", "new"]
            assert "restored from a backup" in leader.log.read_text()

            # The other one's view of who leads is of the restored etcd too.
            present = await both.leader()
            [other] = both.others(present)
            assert all(one.running for one in both.processes)
            present.signal(signal.SIGTERM)
            await eventually(other.leads, within_s=40.0)
            assert sorted(one.spec.name for one in await admin.list_models()) == ["kept", "new"]
