"""What of a cluster is started again, for how long, and what ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chiron.cluster import StartError, keeping
from chiron.cluster.keeping import Keeper, keeps_state
from tests.support.wait import eventually


class Service:
    """Stands for a process that ends when it is told to."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.age_s = 1.0
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        return not self._ended.done()

    def end(self) -> None:
        self._ended.set_result(-9)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def tail(self) -> str:
        return " (log)"


class Services:
    """A cluster of such services, some of which do not start again at once."""

    def __init__(self, *names: str) -> None:
        self.running: dict[str, Any] = {name: Service(name, pid) for pid, name in enumerate(names, 100)}
        self.refusals: dict[str, int] = {}
        self.tries: list[str] = []
        self.told: list[str] = []

    async def start_again(self, name: str) -> Any:
        self.tries.append(name)
        if self.refusals.get(name, 0):
            self.refusals[name] -= 1
            raise StartError("the port is in use")
        self.running[name] = Service(name, self.running[name].pid + 100)
        return self.running[name]

    def first_loss(self, *, lasting_state: bool) -> asyncio.Task[str]:
        keeper = Keeper(self.running, self.start_again, lasting_state=lasting_state)
        return asyncio.create_task(keeper.first_loss(self.told.append))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(keeping, "LONGEST_PAUSE_S", 0.002)


async def test_etcd_and_controllers_on_it_are_started_again_however_often_that_takes() -> None:
    services = Services("etcd", "controller-0", "controller-1", "router-0")
    services.refusals = {"etcd": 20}
    loss = services.first_loss(lasting_state=True)
    services.running["etcd"].end()
    services.running["controller-0"].end()
    await eventually(lambda: services.running["etcd"].running and services.running["controller-0"].running)
    assert services.tries.count("etcd") == 21
    for _ in range(keeping.MOST_RESTARTS + 1):
        before = services.running["controller-1"]
        before.end()
        await eventually(lambda before=before: services.running["controller-1"] is not before)
    await eventually(lambda: services.told[-1] == "controller-1 is started again as pid 702")
    assert not loss.done()
    assert [line for line in services.told if line.startswith("etcd")] == [
        "etcd ended with status -9; what serves goes on",
        "etcd does not start again yet: the port is in use",
        "etcd is started again as pid 200",
    ]
    assert "controller-0 ended with status -9; another controller leads" in services.told
    loss.cancel()


async def test_one_that_takes_long_to_start_holds_up_no_other() -> None:
    services = Services("etcd", "controller-0", "router-0")
    services.refusals = {"etcd": 10**6}
    loss = services.first_loss(lasting_state=True)
    services.running["etcd"].end()
    await eventually(lambda: services.tries.count("etcd") > 3)
    services.running["router-0"].end()
    await eventually(lambda: "router-0 ended with status -9; started again as pid 202" in services.told)
    loss.cancel()


async def test_a_controller_that_takes_the_state_along_ends_the_cluster() -> None:
    services = Services("controller", "router-0")
    loss = services.first_loss(lasting_state=False)
    services.running["controller"].end()
    assert await loss == "controller ended with status -9 (log)"
    assert services.tries == []


async def test_a_router_whose_port_is_taken_for_a_moment_comes_back() -> None:
    services = Services("controller", "router-0")
    services.refusals = {"router-0": 2}
    loss = services.first_loss(lasting_state=False)
    services.running["router-0"].end()
    await eventually(lambda: services.told)
    assert services.told == ["router-0 ended with status -9; started again as pid 201"]
    loss.cancel()


async def test_an_agent_that_never_starts_again_ends_the_cluster_and_the_cause_is_told() -> None:
    services = Services("controller", "node-0")
    services.refusals = {"node-0": 10**6}
    loss = services.first_loss(lasting_state=True)
    services.running["node-0"].end()
    assert await loss == "node-0 ended with status -9, and it does not start again: the port is in use"
    assert len(services.tries) == keeping.MOST_RESTARTS


@pytest.mark.parametrize(
    ("file", "settings", "environ", "kept"),
    [
        ("", {}, {}, False),
        ('[controller.store]\nkind = "etcd"\n', {}, {}, True),
        ('[controller.store]\nkind = "memory"\n', {}, {}, False),
        ('[controller.store]\nkind = "etcd"\n', {"store.kind": "memory"}, {}, False),
        ("", {"store.kind": "etcd"}, {}, True),
        ("", {}, {"CHIRON_CONTROLLER_STORE_KIND": "etcd"}, True),
        ("this is no TOML", {}, {}, False),
        ("controller = 3", {}, {}, False),
    ],
)
def test_the_settings_say_whether_the_state_lasts(
    tmp_path: Path, file: str, settings: dict[str, str], environ: dict[str, str], kept: bool
) -> None:
    config = tmp_path / "chiron.toml"
    config.write_text(file)
    assert keeps_state(config, settings, environ) is kept
