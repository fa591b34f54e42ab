"""What a large file, and the batch made from it, do to a router: its memory, and how long others wait.

python -m bench.large_files                                 # 190 MB in 50,000 lines; a few minutes
python -m bench.large_files --lines 5000 --megabytes 19     # a tenth of both
python -m bench.large_files --lines 50                      # lines of nearly the greatest length
python -m bench.large_files --store postgres                # the queue in PostgreSQL
python -m bench.large_files --smoke                         # the same code, shortly

A cluster with one router and the sim engine. OpenAI's own client, in a process of its own, uploads the file
and has a batch made from it; after a while of work the batch is cancelled, and the file is read back. All the
time another client asks for `/v1/models` every 10 ms, on one connection. One JSON line for each phase: its
seconds, the highest resident memory of the router in MB and by how much it is beyond that of the idle router,
the CPU seconds of the router, and the milliseconds that the other client waited (median, 99 %, most). Waits
of the phase `idle` are those of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from bench.batch_stores import STORES, Store, store_of
from bench.data_path import machine
from chiron.cluster.local import LocalCluster
from chiron.v1 import cluster_pb2

_MODEL = "toy"
_PROBE_S = 0.01
_IDLE_S, _WORK_S = 3.0, 10.0
_MB = 1e6
_UPLOAD = """
import sys
from openai import OpenAI
with open(sys.argv[2], "rb") as lines:
    print(OpenAI(base_url=sys.argv[1], api_key="none").files.create(file=lines, purpose="batch").id)
"""
_DOWNLOAD = """
import sys
from openai import OpenAI
files = OpenAI(base_url=sys.argv[1], api_key="none").files
with files.with_streaming_response.content(sys.argv[2]) as answer:
    print(sum(map(len, answer.iter_bytes(1 << 20))))
"""


@dataclass(slots=True)
class Phase:
    """What was seen during one step."""

    waits_ms: list[float] = field(default_factory=list)
    most_rss: int = 0
    """In bytes."""


class Watch:
    """Asks a router all the time how it is."""

    def __init__(self, url: str, pid: int) -> None:
        host, _, port = url.partition("//")[2].rpartition(":")
        self._address = host, int(port)
        self._process = psutil.Process(pid)
        self._phase = Phase()
        self._idle_rss = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watches meanwhile. Raises what it fails with."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._probe()), group.create_task(self._sample())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @contextlib.asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """One step, of which a line is printed."""
        self._phase = phase = Phase()
        cpu, began = self._cpu_s(), time.monotonic()
        yield
        passed_s = time.monotonic() - began
        waits = sorted(phase.waits_ms) or [0.0]
        self._idle_rss = self._idle_rss or phase.most_rss
        line = {
            "phase": name,
            "seconds": round(passed_s, 2),
            "rss_mb": round(phase.most_rss / _MB, 1),
            "rss_beyond_idle_mb": round((phase.most_rss - self._idle_rss) / _MB, 1),
            "cpu_s": round(self._cpu_s() - cpu, 2),
            "wait_p50_ms": round(waits[len(waits) // 2], 2),
            "wait_p99_ms": round(waits[int(len(waits) * 0.99)], 2),
            "wait_most_ms": round(waits[-1], 2),
            "probes": len(phase.waits_ms),
        }
        print(json.dumps({"machine": machine(), **line}), flush=True)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    async def _sample(self) -> None:
        while True:
            self._phase.most_rss = max(self._phase.most_rss, self._process.memory_info().rss)
            await asyncio.sleep(0.05)

    async def _probe(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        while True:
            phase, began = self._phase, time.perf_counter()
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: bench\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            phase.waits_ms.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(_PROBE_S)


def _write(path: Path, lines: int, size: int) -> None:
    """A file of so many requests and about so many bytes."""
    words = "the sea and all that is in it, " * (size // lines // 31)
    with path.open("w") as file:
        for number in range(lines):
            body = {
                "model": _MODEL,
                "max_tokens": 16,
                "messages": [{"role": "user", "content": f"{number}: {words}"}],
            }
            line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


async def _client(program: str, *arguments: str) -> str:
    """What a client prints, which has a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit("error: the client failed; see its message above")
    return out.decode().strip()


async def measure(store: Store, lines: int, size: int, folder: Path, work_s: float) -> None:
    """Prints a line for each phase."""
    from openai import AsyncOpenAI, ConflictError

    path = folder / "lines.jsonl"
    _write(path, lines, size)
    spec = cluster_pb2.ModelSpec(
        name=_MODEL, engine="sim", gpus_per_instance=1, max_batch_size=64, min_instances=1
    )
    spec.engine_args.update({"profile": "toy"})
    cluster = LocalCluster(
        nodes=1, gpus=1, http_port=0, directory=folder / "run", batch_store=store.url("files")
    )
    async with cluster:
        await cluster.apply([spec])
        await cluster.wait_ready()
        base = f"{cluster.http_urls[0]}/v1"
        watch = Watch(cluster.http_urls[0], cluster.processes["router-0"].pid)
        async with watch.running(), AsyncOpenAI(base_url=base, api_key="none", timeout=600) as client:
            async with watch.phase("idle"):
                await asyncio.sleep(_IDLE_S)
            async with watch.phase("upload"):
                file_id = await _client(_UPLOAD, base, str(path))
            async with watch.phase("validating"):
                batch = await client.batches.create(
                    input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
                )
                while batch.status == "validating":
                    await asyncio.sleep(0.2)
                    batch = await client.batches.retrieve(batch.id)
            if batch.status == "failed":
                raise SystemExit(f"error: the batch failed: {batch.errors}")
            async with watch.phase("in_progress"):
                await asyncio.sleep(work_s)
            async with watch.phase("cancelling"):
                with contextlib.suppress(ConflictError):  # A small one is over by now.
                    await client.batches.cancel(batch.id)
                batch = await client.batches.retrieve(batch.id)
                while batch.status not in ("cancelled", "completed"):
                    await asyncio.sleep(0.2)
                    batch = await client.batches.retrieve(batch.id)
            for name, found in (("download", file_id), ("download_errors", batch.error_file_id)):
                if found is not None:
                    async with watch.phase(name):
                        await _client(_DOWNLOAD, base, found)
            async with watch.phase("deletion"):
                await client.files.delete(file_id)
                await asyncio.sleep(_IDLE_S)


async def _run(arguments: argparse.Namespace) -> None:
    lines, megabytes = (500, 2.0) if arguments.smoke else (arguments.lines, arguments.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        async with store_of(arguments.store, folder) as store:
            work_s = 1.0 if arguments.smoke else _WORK_S
            await measure(store, lines, int(megabytes * _MB), Path(folder), work_s)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--megabytes", type=float, default=190.0)
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--smoke", action="store_true", help="a small file")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
