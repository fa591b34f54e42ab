"""One run: a cluster with a queue, many items, faults until the last result, and what the results are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiron.client import Batch, Client, ItemState
from chiron.cluster.local import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.batch_soak.faults import Faults
from tests.batch_soak.report import Report
from tests.support.postgres_server import PostgresServer

_PROMPTS = 97
"""Different ones: items of equal prompts must have equal answers."""
_MODEL = "toy"
_DEADLINE_S = 86_400.0
_PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    store: str
    routers: int
    items: int
    batches: int
    every_s: float
    seed: int
    seconds: float
    folder: Path


def _spec() -> pb.ModelSpec:
    spec = pb.ModelSpec(name=_MODEL, engine="sim", gpus_per_instance=1, max_batch_size=64)
    spec.min_instances = 2
    spec.engine_args.update({"profile": "toy"})
    return spec


def _items(options: Options, batch: int) -> Iterator[dict[str, Any]]:
    """The items of one batch; with their number in the whole run as their name."""
    for number in range(batch, options.items, options.batches):
        prompt = f"Question {number % _PROMPTS} of seed {options.seed}"
        tokens = 2 + number % _PROMPTS % 7
        yield {
            "model": _MODEL,
            "custom_id": str(number),
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }


@contextlib.asynccontextmanager
async def _database(options: Options) -> AsyncIterator[tuple[PostgresServer | Path, str]]:
    """The database and its address."""
    if options.store == "sqlite":
        file = options.folder / "queue.db"
        yield file, f"sqlite:{file}"
        return
    server = await asyncio.to_thread(PostgresServer, durable=True)
    try:
        await asyncio.to_thread(server.start)
        yield server, server.url
    finally:
        await asyncio.to_thread(server.close)


async def run(options: Options, log: Callable[[str], None]) -> Report:
    """Runs it. Raises TimeoutError when it is not over in the time that it was given."""
    report = Report(options.seed, options.store, options.routers, options.items)
    async with _database(options) as (database, store):
        cluster = LocalCluster(
            nodes=1,
            gpus=3,
            routers=options.routers,
            directory=options.folder,
            batch_store=store,
            settings={"agent": {"cordon_after_failed_starts": "0", "stable_after_s": "0.5"}},
        )
        async with cluster:
            await cluster.apply([_spec()])
            await cluster.wait_ready()
            log("the cluster is ready")
            begin = time.monotonic()
            faults = Faults(cluster, database, options.seed, options.every_s, log)
            striking = asyncio.create_task(faults.run())
            try:
                async with (
                    asyncio.timeout(options.seconds),
                    Client(cluster.router_addresses, batch_patience_s=_PATIENCE_S) as client,
                ):
                    batches = await _work(client, options, striking, log)
                    report.seconds = round(time.monotonic() - begin, 1)
                    await _stop(striking)
                    log("the faults are over")
                    await _check(client, batches, report, log)
            finally:
                await _stop(striking)
            report.count(faults.kinds)
    return report


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _work(
    client: Client, options: Options, striking: asyncio.Task[None], log: Callable[[str], None]
) -> list[str]:
    """Hands in every batch, two at a time, and waits until each has ended. Raises what stopped the faults."""
    room = asyncio.Semaphore(2)

    async def one(number: int) -> str:
        batch_id = f"soak-{options.seed}-{number}"
        async with room:
            await client.batch.submit(
                list(_items(options, number)), deadline_s=_DEADLINE_S, batch_id=batch_id
            )
        log(f"{batch_id} is accepted")
        async for _ in client.batch.watch(batch_id):
            pass
        log(f"{batch_id} has ended")
        return batch_id

    working = asyncio.gather(*(one(number) for number in range(options.batches)))
    done, _ = await asyncio.wait([working, striking], return_when=asyncio.FIRST_COMPLETED)
    if striking in done:
        working.cancel()
        striking.result()
    return list(await working)


async def _check(client: Client, batches: list[str], report: Report, log: Callable[[str], None]) -> None:
    """Reads every result and compares."""
    seen: set[str] = set()
    answers: dict[int, str] = {}
    for batch_id in batches:
        last = 0
        count = 0
        async for result in client.batch.results(batch_id):
            report.duplicated += result.custom_id in seen or result.number != last + 1
            seen.add(result.custom_id)
            last = result.number
            count += 1
            report.repeated += result.attempts > 1
            number = int(result.custom_id)
            if result.state is not ItemState.SUCCEEDED or result.output is None:
                report.failed += 1
                log(f"item {number} of {batch_id}: {result.state.name} {result.error}")
                continue
            report.succeeded += 1
            kind = number % _PROMPTS
            text = result.output.choices[0].text
            whole = result.output.usage.completion_tokens == 2 + kind % 7
            if not whole or answers.setdefault(kind, text) != text:
                report.wrong += 1
                log(f"item {number} of {batch_id}: {text!r} is not {answers.get(kind)!r}")
        report.results += count
        report.miscounted += not _adds_up(await client.batch.get(batch_id), count)
    report.lost = report.items - len(seen)


def _adds_up(batch: Batch, results: int) -> bool:
    told = batch.progress
    ends = told.succeeded + told.failed + told.cancelled + told.expired
    return ends == results == told.items_received and not told.queued and not told.running
