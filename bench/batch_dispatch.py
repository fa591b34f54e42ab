"""Batches through a whole cluster: items a second, CPU of an item, memory of what waits, idle engines.

python -m bench.batch_dispatch                                       # SQLite, one router
python -m bench.batch_dispatch --store postgres --routers 2          # PostgreSQL, two routers
python -m bench.batch_dispatch --items 1500 --tokens 128 --scatter --time-scale 10   # do engines starve?
python -m bench.batch_dispatch --memory                              # a router with a million items waiting
python -m bench.batch_dispatch --smoke                               # the same code, shortly

One JSON line for each length of answer; with --memory, one. `free_slot_share` is time in which an instance
ran less than its batch size while items waited in the queue; a slot that is handed over is free for a moment,
too. `idle_share` weighs that time with the slots that were free. CPU per item is what a busy machine leaves
comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from bench.batch_stores import STORES, Store, store_of
from bench.data_path import machine
from chiron.batch import wire
from chiron.batch.records import NewBatch, NewItem
from chiron.client import Client
from chiron.cluster.local import LocalCluster
from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, inference_pb2

_MODEL = "toy"
_INSTANCES = 2
_BATCH_SIZE = 64
_DEADLINE_S = 86_400.0
_WARM = 500
"""Items that a router has recorded when its memory is measured."""


@dataclass(slots=True)
class Seen:
    """What an instance's load has told while items waited in the queue."""

    watched_s: float = 0.0
    starved_s: float = 0.0
    """Time with a free slot."""
    idle_slot_s: float = 0.0
    """Free slots, each for as long as it was free."""
    most_waiting: int = 0
    """Items in the engine beyond those that run."""


class Watch:
    """Listens to the load of one instance; without a name, so that it has no share of its credits."""

    def __init__(self, address: str) -> None:
        self.seen = Seen()
        self.queued = False
        """Whether items wait in the queue; set by the caller."""
        self._task = asyncio.create_task(self._run(address))

    async def _run(self, address: str) -> None:
        async with open_channel(address, "worker") as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            free, at = 0, time.monotonic()
            async for load in stub.WatchLoad(worker_pb2.WatchLoadRequest()):
                now = time.monotonic()
                if self.queued:
                    self.seen.watched_s += now - at
                    self.seen.starved_s += (now - at) * (free > 0)
                    self.seen.idle_slot_s += (now - at) * free
                    self.seen.most_waiting = max(self.seen.most_waiting, load.waiting.batch)
                free, at = max(0, load.batch_size - load.running.batch), now

    async def close(self) -> None:
        """Ends it. Raises what it has failed with."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def _cluster(store: Store, routers: int, folder: Path) -> LocalCluster:
    return LocalCluster(
        nodes=1, gpus=_INSTANCES, routers=routers, directory=folder, batch_store=store.url("dispatch")
    )


def _spec(time_scale: float = 1.0) -> cluster_pb2.ModelSpec:
    spec = cluster_pb2.ModelSpec(
        name=_MODEL, engine="sim", gpus_per_instance=1, max_batch_size=_BATCH_SIZE, min_instances=_INSTANCES
    )
    spec.initial_batch_size = _BATCH_SIZE
    spec.engine_args.update({"profile": "toy", "time_scale": time_scale})
    return spec


def _cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


async def dispatch(
    store: Store,
    routers: int,
    count: int,
    lengths: Sequence[int],
    folder: Path,
    *,
    scattered: bool,
    time_scale: float,
) -> None:
    """Prints a line for each length of answer."""
    async with _cluster(store, routers, folder) as cluster:
        await cluster.apply([_spec(time_scale)])
        snapshot = await cluster.wait_ready()
        addresses = [one.address for one in snapshot.instances]
        pids = [cluster.processes[f"router-{index}"].pid for index in range(routers)]
        workers = [worker.pid for worker in cluster.workers()]
        async with Client(cluster.router_addresses) as client:
            for tokens in lengths:
                line = await _one_batch(client, store, addresses, (pids, workers), count, tokens, scattered)
                line |= {"routers": routers, "time_scale": time_scale}
                print(json.dumps({"machine": machine(), **line}), flush=True)


async def _one_batch(
    client: Client,
    store: Store,
    addresses: Sequence[str],
    processes: tuple[Sequence[int], Sequence[int]],
    count: int,
    tokens: int,
    scattered: bool,
) -> dict[str, object]:
    items = [
        {
            "model": _MODEL,
            "prompt": f"Question {n}",
            # Scattered between half and one and a half times as many, so that slots come free one by one.
            "max_tokens": tokens // 2 + n * 7919 % (tokens + 1) if scattered else tokens,
            "ignore_eos": True,
        }
        for n in range(count)
    ]
    began = time.monotonic()
    batch = await client.batch.submit(items, deadline_s=_DEADLINE_S)
    sealed = time.monotonic()
    routers, workers = processes
    before = _cpu_s(routers), _cpu_s(workers), store.server_cpu_s()
    watches = [Watch(address) for address in addresses]
    async for shown in client.batch.watch(batch.batch_id):
        told = shown.progress
        done = told.succeeded + told.failed
        for watch in watches:
            # Of what waits in the queue, a round of claims may be on its way already.
            watch.queued = bool(done) and told.queued > 4 * _BATCH_SIZE * _INSTANCES
        ended = shown
    took = time.monotonic() - sealed
    for watch in watches:
        await watch.close()
    if ended.progress.succeeded != count:
        raise AssertionError(f"{ended.progress.succeeded} of {count} items have succeeded")
    seen = [watch.seen for watch in watches]
    watched = sum(one.watched_s for one in seen)
    spent = {
        "router_cpu_us": _cpu_s(routers) - before[0],
        "worker_cpu_us": _cpu_s(workers) - before[1],
        "server_cpu_us": store.server_cpu_s() - before[2],
    }
    return {
        "figure": "dispatch",
        "items": count,
        "tokens": tokens,
        "scattered": scattered,
        "submitted_s": round(sealed - began, 2),
        "dispatched_per_s": round(count / took, 1),
        **{f"{name}_per_item": round(cpu_s / count * 1e6) for name, cpu_s in spent.items()},
        "watched_s": round(watched, 1),
        "free_slot_share": round(sum(one.starved_s for one in seen) / watched, 3) if watched else None,
        "idle_share": round(sum(one.idle_slot_s for one in seen) / watched / _BATCH_SIZE, 3)
        if watched
        else None,
        "most_waiting_in_an_engine": max(one.most_waiting for one in seen),
    }


async def memory(store: Store, queued: int, folder: Path) -> None:
    """Prints a router's resident memory while it works on a short batch, and on one of `queued` items."""
    mib = []
    for count in (_WARM, queued):
        await _fill(store, f"of-{count}", count)
        mib.append(await _resident_mib(store, f"of-{count}", folder / str(count)))
    figures = {
        "figure": "memory",
        "queued": queued,
        "short_mib": round(mib[0], 1),
        "long_mib": round(mib[1], 1),
        "mib_per_million": round((mib[1] - mib[0]) / queued * 1e6, 2),
    }
    print(json.dumps({"machine": machine(), **figures}), flush=True)


async def _fill(store: Store, batch_id: str, count: int) -> None:
    request = inference_pb2.GenerateRequest(model=_MODEL)
    request.sampling.max_tokens = 1
    queue = await store.open("dispatch")
    await queue.create(NewBatch(batch_id, "", _DEADLINE_S))
    for start in range(0, count, 1_000):
        group = []
        for index in range(start, min(start + 1_000, count)):
            request.prompt = f"Question {index}"
            group.append(NewItem(index, str(index), _MODEL, 3, 1, wire.body_of(request)))
        await queue.append(("", batch_id), group)
    await queue.seal(("", batch_id), count)
    await queue.close()


async def _resident_mib(store: Store, batch_id: str, folder: Path) -> float:
    """Of a router that has recorded some of the batch's items; the batch is cancelled then."""
    async with _cluster(store, 1, folder) as cluster:
        await cluster.apply([_spec()])
        async with Client(cluster.router_addresses) as client:
            async for shown in client.batch.watch(batch_id):
                if shown.progress.succeeded >= _WARM:
                    break
            resident = psutil.Process(cluster.processes["router-0"].pid).memory_info().rss / (1 << 20)
            await client.batch.cancel(batch_id)
    return resident


async def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--routers", type=int, default=1, help="more than one need postgres")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--tokens", default="1,32", help="of each answer")
    parser.add_argument("--scatter", action="store_true", help="answers of half to 1.5 times as many tokens")
    parser.add_argument("--time-scale", type=float, default=1.0, help="the engine takes so much longer")
    parser.add_argument("--memory", action="store_true", help="measure memory")
    parser.add_argument("--queued", type=int, default=1_000_000, help="items, for --memory")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.items, options.queued = 600, 3_000
    lengths = [int(one) for one in options.tokens.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        async with store_of(options.store, folder) as store:
            if not options.memory:
                run = Path(folder, "run")
                await dispatch(
                    store,
                    options.routers,
                    options.items,
                    lengths,
                    run,
                    scattered=options.scatter,
                    time_scale=options.time_scale,
                )
            if options.memory or options.smoke:
                await memory(store, options.queued, Path(folder, "memory"))


if __name__ == "__main__":
    uvloop.run(main())
