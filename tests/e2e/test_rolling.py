"""A model changes under load, and no request notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chiron.cli import models
from chiron.cli.status import show_status
from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

READY = types_pb2.INSTANCE_STATE_READY
TOKENS = 40
STREAMS = 3
"""Of each kind: straight from the workers, and through the router."""
SETTINGS = {
    "controller": {"report_interval_ms": "200", "roll_hold_s": "0.5", "drain_notice_s": "0.5"},
    "agent": {"restart_backoff_s": "0.1"},
}


def spec(instances: int, **arguments: object) -> pb.ModelSpec:
    model = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=instances)
    # 10 ms a token: a stream takes 0.4 s.
    model.engine_args.update({"profile": "toy", "time_scale": 5, **arguments})
    return model


@dataclass
class Load:
    """Streams one after the other until it is told to stop."""

    clients: tuple[Client, Client]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    complete: int = 0
    instances: set[str] = field(default_factory=set)
    fewest_ready: int = 1_000_000

    async def stream(self, client: Client) -> None:
        while not self.stop.is_set():
            received = 0
            async for chunk in client.generate(
                model="toy", prompt="hello", max_tokens=TOKENS, ignore_eos=True
            ):
                received += len(chunk.token_ids)
                if chunk.timing is not None:
                    self.instances.add(chunk.timing.instance_id)
            assert received == TOKENS
            self.complete += 1

    def watched(self, snapshot: pb.ClusterSnapshot) -> pb.ModelStatus:
        [model] = snapshot.models
        self.fewest_ready = min(self.fewest_ready, model.ready_instances)
        return model


@asynccontextmanager
async def loaded(cluster: LocalCluster) -> AsyncIterator[Load]:
    """Streams run while the body does; every one of them must have ended well."""
    direct = Client(cluster.router_addresses)
    proxied = Client(cluster.router_addresses, lookaside=False)
    async with direct, proxied, asyncio.TaskGroup() as tasks:
        load = Load((direct, proxied))
        for client in load.clients:
            for _ in range(STREAMS):
                tasks.create_task(load.stream(client))
        try:
            yield load
        finally:
            load.stop.set()
    for client in load.clients:
        assert client.stats.failed == 0
        assert client.stats.requests > 0


async def rolled(
    cluster: LocalCluster, load: Load, to_version: int, state: pb.RollState.ValueType = pb.ROLL_STATE_DONE
) -> pb.ClusterSnapshot:
    def there(snapshot: pb.ClusterSnapshot) -> bool:
        roll = load.watched(snapshot).roll
        return roll.state == state and roll.to_version == to_version

    return await cluster.wait_for(there)


def ids(snapshot: pb.ClusterSnapshot, keep: Callable[[pb.InstanceStatus], bool] = lambda _: True) -> set[str]:
    return {one.instance_id for one in snapshot.instances if keep(one)}


async def test_three_instances_are_replaced_under_load_without_a_failed_or_repeated_request(
    tmp_path: Path,
) -> None:
    async with LocalCluster(nodes=2, gpus=2, directory=tmp_path, settings=SETTINGS) as cluster:
        await cluster.apply([spec(3)])
        before = ids(await cluster.wait_ready())
        async with loaded(cluster) as load:
            await cluster.admin.apply_model(spec(3, seed=2))
            after = ids(await rolled(cluster, load, 2), lambda one: one.spec_version == 2)
            there = load.complete
            await cluster.wait_for(lambda _: load.complete > there + 2 * STREAMS)

        assert len(after) == 3
        assert not before & after
        assert load.fewest_ready == 3
        assert load.instances <= before | after
        assert load.instances & before
        assert load.instances & after
        assert [client.stats.retries for client in load.clients] == [0, 0], "nobody met a closed door"


async def test_a_rollback_half_way_keeps_what_has_not_been_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_way(snapshot: pb.ClusterSnapshot) -> bool:
        return load.watched(snapshot).roll.remaining == 1

    async with LocalCluster(nodes=1, gpus=3, directory=tmp_path, settings=SETTINGS) as cluster:
        await cluster.apply([spec(2)])
        await cluster.wait_ready()
        async with loaded(cluster) as load:
            new = spec(2, seed=2)
            await cluster.admin.apply_model(new)
            await cluster.wait_for(half_way)
            # Nothing proves itself from now on: the roll stays where it is.
            new.roll.hold_s = 600
            await cluster.admin.apply_model(new)
            snapshot = await cluster.admin.snapshot()
            kept = ids(snapshot, lambda one: one.spec_version == 1 and one.state == READY)
            await models.rollback(cluster.controller_address, "toy", 1)
            said = capsys.readouterr().out
            after = ids(await rolled(cluster, load, 1), lambda one: one.spec_version == 1)
            await models.history(cluster.controller_address, "toy", as_json=False)
            rows = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert said.startswith("toy: spec version 1, ")
    assert len(kept) == 1
    assert kept < after
    assert load.fewest_ready == 2
    assert [row[0] for row in rows] == ["version", "v3", "v2", "v1"]
    assert [row[-1] for row in rows[1:3]] == ["roll", "engine_args"]
    assert rows[3][1:3] == ["yes", "2"]


@pytest.mark.parametrize("back", [False, True], ids=["stalls", "turns back"])
async def test_a_version_that_cannot_load_harms_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], back: bool
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(
        '[models.toy]\nengine = "sim"\nmin_instances = 2\n'
        'engine_args = { profile = "toy", time_scale = 5, fail_load = "no such weights" }\n'
    )
    async with LocalCluster(nodes=1, gpus=3, directory=tmp_path / "run", settings=SETTINGS) as cluster:
        await cluster.apply([spec(2)])
        before = ids(await cluster.wait_ready())
        async with loaded(cluster) as load:
            await models.apply(cluster.controller_address, [broken], rollback_on_failure=back)
            assert capsys.readouterr().out == "toy: applied (spec version 2)\n"
            state = pb.ROLL_STATE_DONE if back else pb.ROLL_STATE_STALLED
            await rolled(cluster, load, 1 if back else 2, state)
            there = load.complete
            await cluster.wait_for(lambda _: load.complete > there + 2 * STREAMS)
            await show_status(cluster.controller_address, watch=False, as_json=False)
            status = capsys.readouterr().out
            after = await cluster.admin.snapshot()

    assert load.instances == before
    assert load.fewest_ready == 2
    assert ids(after, lambda one: one.state == READY) == before
    model = next(line for line in status.splitlines() if line.startswith("toy "))
    assert "no such weights" in model
    if back:
        assert "spec version 2 was rolled back" in model
        assert after.models[0].spec_version == 1
    else:
        assert "v1→v2 0/2" in model
        assert "the roll to spec version 2 has stalled, the earlier one goes on" in model
