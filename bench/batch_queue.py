"""What a durable batch queue takes, hands out and records, and what its calls cost by its length.

python -m bench.batch_queue                                   # 10,000 to 1,000,000 queued, in SQLite
python -m bench.batch_queue --store postgres                  # in a PostgreSQL server that syncs
python -m bench.batch_queue --sizes 10000,100000,1000000,10000000 --folder /var/tmp
python -m bench.batch_queue --smoke                           # the same code, shortly

JSON lines: one of throughput, one for each size. A folder in memory (/dev/shm) leaves the disk out of it.
`cpu` is this process's; `server_cpu` is that of PostgreSQL's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median

from bench.batch_stores import STORES, Store, store_of
from bench.data_path import machine
from chiron.batch.contract import BatchQueue
from chiron.batch.records import (
    BatchKey,
    Claim,
    ItemState,
    NewBatch,
    NewItem,
    Outcome,
    Return,
    Session,
)

TENANT = "bench"
MODEL = "chat"
SESSION_S = 86_400.0
OF_A_BATCH = 1_000_000
"""Items, at most: a longer queue has more batches."""


def rss_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def sync_ms(folder: str) -> float:
    """Median of an fsync after a write of 4 KiB."""
    taken = []
    file = os.open(f"{folder}/sync", os.O_CREAT | os.O_WRONLY)
    for _ in range(30):
        os.pwrite(file, bytes(4096), 0)
        began = time.perf_counter()
        os.fsync(file)
        taken.append((time.perf_counter() - began) * 1e3)
    os.close(file)
    os.unlink(f"{folder}/sync")
    return median(taken)


class Peak:
    """The largest resident memory since it was last asked for."""

    def __init__(self) -> None:
        self._highest = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._highest = max(self._highest, rss_mib())

    def take(self) -> float:
        """In MiB."""
        highest, self._highest = max(self._highest, rss_mib()), 0.0
        return highest

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self._thread.join()


def items(first: int, count: int, body: bytes) -> list[NewItem]:
    return [
        NewItem(index, f"request-{index}", MODEL, 300, 200, body + b"%09d" % index)
        for index in range(first, first + count)
    ]


async def fill(queue: BatchQueue, key: BatchKey, count: int, group: int, callers: int, body: bytes) -> float:
    """Hands in a batch from `callers` callers at once, `group` items a call; seconds until it is accepted."""
    began = time.perf_counter()
    await queue.create(NewBatch(key[1], key[0], 86_400.0))
    starts = iter(range(0, count, group))

    async def hand_in() -> None:
        for start in starts:
            await queue.append(key, items(start, min(group, count - start), body))

    await asyncio.gather(*(hand_in() for _ in range(callers)))
    await queue.seal(key, count)
    return time.perf_counter() - began


async def drain(
    queue: BatchQueue, session: Session, key: BatchKey, result: bytes, claimed: int, finished: int
) -> float:
    """Claims and finishes every item, by four callers; seconds."""
    began = time.perf_counter()

    async def work() -> None:
        while claims := await queue.claim(session, key, MODEL, claimed):
            outcomes = [Outcome(one.lease, ItemState.SUCCEEDED, result, 300, 200) for one in claims]
            for start in range(0, len(outcomes), finished):
                await queue.finish(session, outcomes[start : start + finished])

    await asyncio.gather(*(work() for _ in range(4)))
    return time.perf_counter() - began


async def throughput(store: Store, count: int) -> dict[str, object]:
    """Items a second with bodies and results of 1 KB."""
    body = random.Random(1).randbytes(1_000)
    figures: dict[str, object] = {"figure": "throughput", "items": count, "body_bytes": len(body)}
    queue = await store.open("throughput")
    session = await queue.begin_session("bench", SESSION_S)
    for group, callers in ((1, 64), (200, 1), (200, 8), (1_000, 4)):
        key = (TENANT, f"{group}x{callers}")
        some = count if group > 1 else count // 10
        spent = Spent(store)
        took = await fill(queue, key, some, group, callers, body)
        name = f"accepted_per_s_groups_of_{group}_from_{callers}"
        figures[name] = round(some / took)
        figures |= {f"{name}_{of}": figure for of, figure in spent.us(some).items()}
    for claimed, finished, key in ((32, 8, (TENANT, "200x8")), (256, 256, (TENANT, "200x1"))):
        spent = Spent(store)
        took = await drain(queue, session, key, body, claimed, finished)
        name = f"claimed_and_finished_per_s_{claimed}_and_{finished}"
        figures[name] = round(count / took)
        figures |= {f"{name}_{of}": figure for of, figure in spent.us(count).items()}
    await queue.close()
    return figures


class Spent:
    """CPU time since it was made, which is what a busy machine leaves comparable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._own, self._server = time.process_time(), store.server_cpu_s()

    def us(self, count: int) -> dict[str, float]:
        """Of one of so many, in microseconds."""
        figures = {"cpu_us": (time.process_time() - self._own) / count * 1e6}
        if server := self._store.server_cpu_s() - self._server:
            figures["server_cpu_us"] = server / count * 1e6
        return {name: round(figure, 1) for name, figure in figures.items()}


Call = Callable[[], Awaitable[object]]


async def timed(store: Store, call: Call, repeats: int) -> dict[str, float]:
    taken = []
    spent = Spent(store)
    for _ in range(repeats):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1e3)
    return {
        **{name.replace("_us", "_ms"): round(us / 1e3, 3) for name, us in spent.us(repeats).items()},
        "median_ms": round(median(taken), 3),
        "worst_ms": round(max(taken), 3),
    }


class Costs:
    """What each call costs on a queue of a given length."""

    def __init__(self, queue: BatchQueue, session: Session, key: BatchKey, kept: int, repeats: int) -> None:
        self._queue = queue
        self._session = session
        self._key = key
        self._kept = kept
        self._repeats = repeats
        self._rng = random.Random(kept)
        self._claims: list[Claim] = []
        self._made = 0

    async def measure(self, store: Store) -> dict[str, dict[str, float]]:
        """Leaves the queue as long as it was, but for a few items that have ended."""
        calls: dict[str, Call] = {
            "append_100": self._append,
            "seal": self._seal,
            "claim_32": self._claim,
            "checkpoint_32": self._checkpoint,
            "finish_32": self._finish,
            "claim_and_put_back_32": self._put_back,
            "units": self._queue.units,
            "usage": self._queue.usage,
            "get": self._get,
            "results_100": self._results,
            "result_by_id": self._result,
            "sweep": self._queue.sweep,
            "renew": self._renew,
        }
        return {name: await timed(store, call, self._repeats) for name, call in calls.items()}

    def _small(self, number: int) -> BatchKey:
        return TENANT, f"small-{self._kept}-{number}"

    async def _append(self) -> None:
        key = self._small(self._made)
        self._made += 1
        await self._queue.create(NewBatch(key[1], key[0], 86_400.0))
        await self._queue.append(key, items(0, 100, b""))

    async def _seal(self) -> None:
        self._made -= 1
        await self._queue.seal(self._small(self._made), 100)

    async def _claim(self) -> None:
        self._claims += await self._queue.claim(self._session, self._key, MODEL, 32)

    async def _checkpoint(self) -> None:
        await self._queue.checkpoint(self._session, [(one.lease, bytes(500)) for one in self._claims[:32]])

    async def _finish(self) -> None:
        some, self._claims = self._claims[:32], self._claims[32:]
        await self._queue.finish(
            self._session, [Outcome(one.lease, ItemState.SUCCEEDED, b"done", 300, 200) for one in some]
        )

    async def _put_back(self) -> None:
        some = await self._queue.claim(self._session, self._key, MODEL, 32)
        await self._queue.put_back(self._session, [Return(one.lease, counts=False) for one in some])

    async def _get(self) -> None:
        await self._queue.get(self._key)

    async def _results(self) -> None:
        await self._queue.results(self._key, after=0, limit=100, most_bytes=1 << 20)

    async def _result(self) -> None:
        await self._queue.result(self._key, f"request-{self._rng.randrange(min(self._kept, OF_A_BATCH))}")

    async def _renew(self) -> None:
        await self._queue.renew(self._session)


async def by_length(store: Store, sizes: Sequence[int], repeats: int, said: dict[str, object]) -> None:
    """Grows one queue from size to size; prints a line at each."""
    peak = Peak()
    queued = batches = 0
    for size in sizes:
        queue = await store.open("length")
        key = (TENANT, "")
        began = time.perf_counter()
        before, spent = queued, Spent(store)
        while queued < size:
            key = (TENANT, f"batch-{batches}")
            batches += 1
            some = min(OF_A_BATCH, size - queued)
            await fill(queue, key, some, 1_000, 4, b"a small body, for the length of the queue")
            queued += some
        took, cost = time.perf_counter() - began, spent.us(queued - before)
        filling_mib = peak.take()
        await queue.close()
        reopened = time.perf_counter()
        queue = await store.open("length")
        opened_ms = (time.perf_counter() - reopened) * 1e3
        session = await queue.begin_session("bench", SESSION_S)
        costs = await Costs(queue, session, key, queued, repeats).measure(store)
        line: dict[str, object] = {
            "figure": "costs",
            "queued": queued,
            "accepted_per_s": round((queued - before) / took),
            **{f"accepted_{of}": figure for of, figure in cost.items()},
            "open_ms": round(opened_ms, 1),
            "file_bytes_per_item": round(await store.size("length") / queued),
            "rss_mib": {"filling": round(filling_mib, 1), "working": round(peak.take(), 1)},
            "calls": costs,
        }
        print(json.dumps(said | line), flush=True)
        await queue.close()
    peak.end()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--items", type=int, default=100_000, help="of the throughput's batches")
    parser.add_argument("--folder", default=None, help="where the files are made and removed")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    count = 2_000 if options.smoke else options.items
    sizes = [1_000, 3_000] if options.smoke else [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        said: dict[str, object] = {
            "machine": machine(),
            "seed": 1,
            "store": options.store,
            "sync_ms": round(sync_ms(folder), 3),
        }
        async with store_of(options.store, folder) as store:
            print(json.dumps(said | await throughput(store, count)), flush=True)
            await by_length(store, sizes, 5 if options.smoke else 30, said)


if __name__ == "__main__":
    asyncio.run(main())
