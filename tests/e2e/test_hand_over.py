"""An instance that is to go hands its streams over under load, and no reader notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

READY = types_pb2.INSTANCE_STATE_READY
TOKENS = 600
STREAMS = 3
"""Of each kind: straight from the workers, and through the router."""
SETTINGS = {
    "controller": {"report_interval_ms": "200", "drain_notice_s": "0.5"},
    "agent": {"statistics_interval_ms": "200", "drain_timeout_s": "60"},
}


def spec() -> pb.ModelSpec:
    model = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1, max_batch_size=16)
    # 10 ms a token: a stream takes 6 s.
    model.engine_args.update({"profile": "toy", "time_scale": 5})
    return model


async def test_streams_of_an_instance_that_is_not_wanted_any_more_go_on_at_the_other(tmp_path: Path) -> None:
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path, settings=SETTINGS) as cluster:
        await cluster.apply([spec()])
        await cluster.admin.scale_model("toy", 2)
        await cluster.wait_for(lambda seen: [one.state for one in seen.instances] == [READY] * 2)
        direct = Client(cluster.router_addresses)
        proxied = Client(cluster.router_addresses, lookaside=False)
        received: dict[str, list[int]] = {}
        ended: dict[str, str] = {}

        async def stream(client: Client, name: str) -> None:
            tokens = received[name] = []
            async for chunk in client.generate(
                model="toy",
                prompt="hello",
                temperature=0.0,
                max_tokens=TOKENS,
                ignore_eos=True,
                request_id=name,
            ):
                assert chunk.first_token_index == len(tokens)
                tokens += chunk.token_ids
                if chunk.timing is not None:
                    ended[name] = chunk.timing.instance_id

        async with direct, proxied, asyncio.TaskGroup() as tasks:
            for number in range(STREAMS):
                tasks.create_task(stream(direct, f"direct-{number}"))
                tasks.create_task(stream(proxied, f"proxied-{number}"))
            await cluster.wait_for(
                lambda seen: all(one.load.running.interactive >= 2 for one in seen.instances)
            )
            # Both have streams, which would run where they are for seconds more.
            await cluster.admin.scale_model("toy", 1)
            seen = await cluster.wait_for(lambda seen: len(seen.instances) == 1)
        stats = [direct.stats, proxied.stats]

    assert len(ended) == 2 * STREAMS
    assert set(ended.values()) == {seen.instances[0].instance_id}
    # The engine's answer depends on the tokens before it alone.
    assert {tuple(tokens) for tokens in received.values()} == {tuple(received["direct-0"])}
    assert len(received["direct-0"]) == TOKENS
    assert [(one.failed, one.resumed, one.throttled) for one in stats] == [(0, 0, 0)] * 2
