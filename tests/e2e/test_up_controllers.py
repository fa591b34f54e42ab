"""`chiron up --controllers 3 --etcd`: one leads, another takes over, nothing is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from chiron.cluster import ClusterAdmin
from chiron.v1 import types_pb2
from tests.support.chiron_command import Up, chiron, chiron_up, only_error
from tests.support.etcd_server import EtcdServer, binary, etcd_members
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY


def short_leases(folder: Path) -> Path:
    config = folder / "chiron.toml"
    config.write_text("[controller.store]\nlease_s = 2\n")
    return config


async def status(up: Up) -> Any:
    shown = await chiron("status", "--json", f"--controller={up.controller}")
    assert shown.status == 0, shown
    return shown.json()


def process_of(up: Up, address: str) -> int:
    """The controller that listens there."""
    table = [
        line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    inodes = {line.split()[9] for line in table if _listens(line, address)}
    for pid in up.processes():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor) if descriptor.is_symlink() else ""
            if target.removeprefix("socket:[").rstrip("]") in inodes:
                return pid
    raise AssertionError(f"nobody listens on {address}")


def _listens(line: str, address: str) -> bool:
    _, local, _, state, *_ = line.split()
    return state == "0A" and int(local.split(":")[1], 16) == int(address.rpartition(":")[2])


async def test_the_leader_and_etcd_may_be_killed_and_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    config = short_leases(tmp_path)
    options = ("--controllers=3", "--etcd", f"--config={config}", "--nodes=1")
    async with chiron_up(*options, directory=tmp_path / "run") as up:
        await up.ready()
        # itself, etcd, three controllers, a router, an agent, two workers and the sweeper
        assert len(up.processes()) == 10
        before = await status(up)
        assert before["store"]["kind"] == "etcd"
        assert [one["leader"] for one in before["controllers"]] == [True, False, False]
        addresses = up.controller.split(",")
        assert {one["address"] for one in before["controllers"]} == set(addresses)
        table = await chiron("status", f"--controller={up.controller}")
        assert sum(line.split()[1:2] == ["follower"] for line in table.stdout.splitlines()) == 2
        assert sum(line.split()[1:2] == ["leader"] for line in table.stdout.splitlines()) == 1

        leader = before["controllers"][0]["address"]
        os.kill(process_of(up, leader), signal.SIGKILL)
        await up.line("ended with status -9; another controller leads")
        after = await status(up)
        assert after["controllers"][0]["address"] in set(addresses) - {leader}
        assert int(after["term"]) > int(before["term"])
        answer = await chiron("generate", "toy", "hi", "--max-tokens=4", f"--router={up.router}")
        assert answer.status == 0

        # Asked from here: a `chiron status` every time would take longer than what is waited for.
        async def the_same() -> bool:
            async with ClusterAdmin(addresses, timeout_s=30.0) as admin:
                now = await admin.snapshot()
            ready = [one.instance_id for one in now.instances if one.state == READY]
            settled = not now.controllers[0].settling and len(now.controllers) == 3
            return settled and ready == [one["instance_id"] for one in before["instances"]]

        await up.line(r"is started again as pid \d+")
        await eventually(the_same, within_s=30.0)

        (etcd,) = (pid for pid, command in up.processes().items() if command.startswith(str(binary())))
        os.kill(etcd, signal.SIGKILL)
        await up.line("etcd ended with status -9; what serves goes on")
        answer = await chiron("generate", "toy", "hi", "--max-tokens=4", f"--router={up.router}")
        assert answer.status == 0
        await up.line(r"etcd is started again as pid \d+")
        await eventually(the_same, within_s=30.0)

        workers = {pid for pid, command in up.processes().items() if "services.worker" in command}
        second = await chiron(
            "up", f"--directory={tmp_path / 'run'}", "--router-port=0", "--http-port=0", "--controller-port=0"
        )
        assert f"another cluster runs here (pid {up.process.pid})" in only_error(second, 2)
        assert workers == {pid for pid, command in up.processes().items() if "services.worker" in command}

        up.process.send_signal(signal.SIGINT)
        assert await up.end() == 0
        assert up.processes() == {}


async def test_an_up_that_is_killed_takes_etcd_and_controllers_along(tmp_path: Path) -> None:
    options = ("--controllers=2", "--etcd", "--nodes=1")
    async with chiron_up(*options, directory=tmp_path / "run") as up:
        await up.ready()
        assert any(binary() in command for command in up.processes().values())
        up.process.kill()
        await eventually(lambda: not up.processes(), within_s=40.0, what="every process has ended")


async def test_the_state_lies_in_the_etcd_that_is_named(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd") as members:
        etcd: EtcdServer = members[0]
        async with chiron_up(f"--etcd={etcd.endpoint}", "--nodes=1", directory=tmp_path / "run") as up:
            await up.ready()
            assert not any(binary() in command for command in up.processes().values())
            assert [one["address"] for one in (await status(up))["store"]["endpoints"]] == [etcd.endpoint]
        assert "/chiron/default/state/model/toy" in etcd.control("get", "--prefix", "--keys-only", "/chiron")


async def test_several_controllers_without_etcd_are_refused_in_one_line() -> None:
    refused = only_error(await chiron("up", "--controllers=3"), 2)
    assert refused == "several controllers share their state in etcd: add --etcd, or --etcd HOST:PORT"
