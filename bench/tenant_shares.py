"""What two tenants are given while both always have requests waiting, beside what their weights say.

    python -m bench.tenant_shares            # every arrangement, about four minutes; a JSON line for each
    python -m bench.tenant_shares --smoke    # one of them, shortly, to see that it works

A local cluster with two routers and one sim engine of four slots; tenants a and b with weights 1 and 3, each
with clients in processes of their own, which keep 40 requests open at a router (ten in one arrangement): more
than the engine takes, so that some of each always wait. What counts is the answers that were whole within a
window, which begins seconds after every client has had one and ends before any of them stops. What is open
when they stop is served all the same, whatever the weights, and says nothing of shares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.data_path import machine
from chiron.client import Client, NotFound, Unauthenticated
from chiron.cluster import LocalCluster
from chiron.cluster.access_admin import AccessAdmin
from chiron.v1 import access_pb2, cluster_pb2

_MODEL, _SLOTS, _TOKENS, _TIME_SCALE = "toy", 4, 20, 4.0
_WEIGHTS = {"a": 1.0, "b": 3.0}
_OPEN = 40
_BEFORE_S = 4.0
_LOOK_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """A tenant's clients at one router."""

    tenant: str
    door: str
    router: int
    open: int = _OPEN


ARRANGEMENTS: dict[str, tuple[Place, ...]] = {
    "one router, HTTP": (Place("a", "http", 0), Place("b", "http", 0)),
    "one router, HTTP, ten of b": (Place("a", "http", 0), Place("b", "http", 0, 10)),
    "one router, a HTTP, b lookaside": (Place("a", "http", 0), Place("b", "lookaside", 0)),
    "one router, a HTTP, b proxied": (Place("a", "http", 0), Place("b", "proxied", 0)),
    "one router, a lookaside, b HTTP": (Place("a", "lookaside", 0), Place("b", "http", 0)),
    "two routers, both at both, HTTP": tuple(Place(t, "http", r) for t in "ab" for r in (0, 1)),
    "two routers, both at both, lookaside": tuple(Place(t, "lookaside", r) for t in "ab" for r in (0, 1)),
    "two routers, a at one, b at the other": (Place("a", "http", 0), Place("b", "http", 1)),
    "two routers, a at both, b at one": (Place("a", "http", 0), Place("a", "http", 1), Place("b", "http", 1)),
    "two routers, a at one, b at both": (Place("a", "http", 0), Place("b", "http", 0), Place("b", "http", 1)),
}


async def measure(
    cluster: LocalCluster, places: Sequence[Place], keys: dict[str, str], for_s: float
) -> dict[str, object]:
    """The figures of one arrangement."""
    clients = [await _client(cluster, place, keys[place.tenant]) for place in places]
    for client in clients:
        await _next_end(client)
    outputs = [asyncio.create_task(_ends(client)) for client in clients]
    await asyncio.sleep(_BEFORE_S)
    began = time.monotonic()
    await asyncio.sleep(for_s)
    ended = time.monotonic()
    for client in clients:
        assert client.stdin is not None
        client.stdin.close()
    answers = dict.fromkeys(_WEIGHTS, 0)
    for place, ends in zip(places, await asyncio.gather(*outputs), strict=True):
        answers[place.tenant] += sum(began <= at < ended for at in ends)
    return {
        "answers": answers,
        "per_s": round(sum(answers.values()) / (ended - began), 1),
        "b_per_a": round(answers["b"] / max(1, answers["a"]), 2),
    }


async def _client(cluster: LocalCluster, place: Place, key: str) -> asyncio.subprocess.Process:
    doors = cluster.http_urls if place.door == "http" else cluster.router_addresses
    arguments = ["--model", _MODEL, "--open", str(place.open), "--tokens", str(_TOKENS)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.waiting_client", place.door, doors[place.router], *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "CHIRON_API_KEY": key},
    )


async def _known(address: str, key: str) -> None:
    """Waits until the router knows the key and serves the model."""
    async with Client(address, api_key=key) as client:
        while True:
            try:
                await client.complete(model=_MODEL, prompt="Tell me.", max_tokens=1)
            except (Unauthenticated, NotFound):
                await asyncio.sleep(_LOOK_AGAIN_S)
            else:
                return


async def _next_end(client: asyncio.subprocess.Process) -> float:
    """When its next answer was whole. Raises StopAsyncIteration once it has ended."""
    assert client.stdout is not None
    return float(await anext(client.stdout))


async def _ends(client: asyncio.subprocess.Process) -> list[float]:
    assert client.stdout is not None
    ends = [float(line) async for line in client.stdout]
    if await client.wait():
        raise SystemExit("error: a client failed; see its message above")
    return ends


async def run(names: Sequence[str], for_s: float) -> None:
    """Prints the figures."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        asked = {"auth.require": "true"}
        cluster = await stack.enter_async_context(
            LocalCluster(
                nodes=1,
                gpus=1,
                routers=2,
                http_port=0,
                directory=Path(folder),
                settings={"controller": asked, "router": asked},
            )
        )
        admin = await stack.enter_async_context(
            AccessAdmin(cluster.controller_addresses, api_key=cluster.api_key)
        )
        keys = {}
        for tenant, weight in _WEIGHTS.items():
            quota = access_pb2.Quota(weight=weight)
            await admin.apply_tenant(access_pb2.Tenant(name=tenant, models=["*"], quota=quota))
            keys[tenant] = (await admin.create_key(tenant)).secret
        spec = cluster_pb2.ModelSpec(
            name=_MODEL, engine="sim", gpus_per_instance=1, min_instances=1, max_batch_size=_SLOTS
        )
        spec.engine_args.update({"profile": "toy", "time_scale": _TIME_SCALE, "load_time_s": 0})
        await cluster.apply([spec])
        await cluster.wait_ready()
        for address in cluster.router_addresses:
            for key in keys.values():
                await _known(address, key)
        print(
            json.dumps({"machine": machine(), "weights": _WEIGHTS, "slots": _SLOTS, "window_s": for_s}),
            flush=True,
        )
        for name in names:
            figures = await measure(cluster, ARRANGEMENTS[name], keys, for_s)
            print(json.dumps({"arrangement": name, **figures}), flush=True)


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--for-s", type=float, default=15.0, help="length of each window")
    parser.add_argument(
        "--only", action="append", choices=list(ARRANGEMENTS), help="one of them; may be repeated"
    )
    parser.add_argument("--smoke", action="store_true", help="the same code, shortly")
    options = parser.parse_args()
    names, for_s = (options.only or list(ARRANGEMENTS), options.for_s)
    if options.smoke:
        names, for_s = names[:1], 2.0
    asyncio.run(run(names, for_s))


if __name__ == "__main__":
    main()
