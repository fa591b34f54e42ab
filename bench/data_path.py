"""What the router's data path costs: pick, proxy and lookaside against a direct connection.

    make bench                 # about 3 minutes; bench/results/data_path.json
    make bench-smoke           # a few seconds, to see that it runs

CPU is the router process's user + system time. The per-request cost comes from requests of one token; the
per-token cost is the slope between paced streams of few and of many tokens (128 streams, 10 ms a token), so
that what a request costs is not counted into its tokens. Added TTFT is against a direct connection, one at a
time, the modes taking turns. RSS is taken before and while proxied streams idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.one_instance import controller_of
from bench.processes import started
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

RESULTS = Path(__file__).parent / "results"
MODES = ("direct", "pick", "proxy", "lookaside")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    requests: int = 4000
    streams: int = 128
    few_tokens: int = 20
    many_tokens: int = 520
    interval_ms: int = 10
    merged_tokens: int = 4
    """In one message, as a worker merges them where `longest_hold_ms` is 40."""
    ttft_requests: int = 200
    ttft_rounds: int = 5
    idle_streams: int = 2000


SMOKE = Size(
    requests=64, streams=8, few_tokens=2, many_tokens=12, ttft_requests=10, ttft_rounds=1, idle_streams=20
)


class Bench:
    """The running pieces and the runs made with them."""

    def __init__(self, door: str, worker: str, router_pid: int, size: Size) -> None:
        self._door, self._worker, self._size = door, worker, size
        self._router = psutil.Process(router_pid)

    async def load(
        self, mode: str, requests: int, concurrency: int, tokens: int, merged: int = 1
    ) -> dict[str, Any]:
        """One run of the load generator, with the router's CPU seconds."""
        shape = (requests, concurrency, tokens, self._size.interval_ms, merged)
        arguments = (mode, self._door, self._worker, *shape)
        before = self._router.cpu_times()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.load", *map(str, arguments), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        after = self._router.cpu_times()
        if process.returncode != 0:
            raise SystemExit(f"error: the load generator failed in mode {mode}")
        result: dict[str, Any] = json.loads(out)
        result["cpu_s"] = (after.user + after.system) - (before.user + before.system)
        return result

    async def cost(self, mode: str) -> dict[str, float]:
        """CPU µs of the router per request and, for streams, per token."""
        size = self._size
        await self.load(mode, size.streams, size.streams, 1)
        short = await self.load(mode, size.requests, size.streams, 1)
        figures = {
            "cpu_us_per_request": 1e6 * short["cpu_s"] / short["requests"],
            "requests_per_s": short["requests"] / short["wall_s"],
        }
        if mode != "pick":
            few = await self.load(mode, size.streams, size.streams, size.few_tokens)
            many = await self.load(mode, size.streams, size.streams, size.many_tokens)
            figures["cpu_us_per_token"] = _slope(few, many)
        if mode == "proxy":
            merged = size.merged_tokens
            few = await self.load(mode, size.streams, size.streams, size.few_tokens, merged)
            many = await self.load(mode, size.streams, size.streams, size.many_tokens, merged)
            figures["cpu_us_per_token_merged"] = _slope(few, many)
        return figures

    async def ttft(self) -> dict[str, float]:
        """Median TTFT of each mode in ms, one request at a time, the modes taking turns."""
        seen: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(self._size.ttft_rounds):
            for mode in MODES:
                seen[mode] += (await self.load(mode, self._size.ttft_requests, 1, 1))["ttft_ms"]
        return {mode: statistics.median(values) for mode, values in seen.items()}

    async def idle_rss(self) -> float:
        """KiB of router RSS per idle proxied stream."""
        count = self._size.idle_streams
        channels = [open_channel(self._door) for _ in range(16)]
        stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        request = pb.GenerateRequest(
            model="bench", prompt="x", sampling=pb.SamplingParams(max_tokens=2, ignore_eos=True)
        )
        # The first call on each connection allocates what later ones share.
        warm = [stub.Generate(request) for stub in stubs]
        for call in warm:
            await call.read()
        before = self._router.memory_info().rss
        calls = [stubs[index % len(stubs)].Generate(request) for index in range(count)]
        for call in calls:
            await call.read()
        after = self._router.memory_info().rss
        for call in warm + calls:
            call.cancel()
        for channel in channels:
            await channel.close()
        return (after - before) / 1024 / count


def _slope(few: dict[str, Any], many: dict[str, Any]) -> float:
    """CPU µs for each further token."""
    slope: float = 1e6 * (many["cpu_s"] - few["cpu_s"]) / (many["tokens"] - few["tokens"])
    return slope


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


async def measure(size: Size) -> dict[str, Any]:
    """Everything, once."""
    async with started("bench.paced_worker", "0") as (worker, _), controller_of(worker) as controller:
        sets = ("listen=127.0.0.1:0", f"controller={controller}")
        arguments = [part for item in sets for part in ("--set", item)]
        async with started("services.router", *arguments) as (door, pid):
            bench = Bench(door, worker, pid, size)
            results: dict[str, Any] = {
                "machine": machine(),
                "size": {n: getattr(size, n) for n in size.__slots__},
            }
            for mode in ("pick", "proxy", "lookaside"):
                results[mode] = await bench.cost(mode)
                print(f"{mode}: {results[mode]}", file=sys.stderr)
            medians = await bench.ttft()
            results["ttft_p50_ms"] = medians
            for mode in ("proxy", "lookaside"):
                results[mode]["added_ttft_p50_ms"] = medians[mode] - medians["direct"]
            results["proxy"]["rss_mib_per_1000_idle_streams"] = await bench.idle_rss() * 1000 / 1024
            # A lookaside stream is none of the router's: it holds a reservation for two seconds at most.
    return results


def main() -> None:
    """Runs the benchmark and prints one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="run everything once, shortly")
    arguments = parser.parse_args()
    results = uvloop.run(measure(SMOKE if arguments.smoke else Size()))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "data_path.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
