"""What the OpenAI-compatible HTTP door costs, beside a plain ASGI server and beside the gRPC proxy.

    python -m bench.http_door [--smoke]      # about 2 minutes; bench/results/http_door.json

CPU is the server process's user + system time, the same for all three: per request from streams of one
token, per token from the slope between paced streams of few and of many tokens (128 streams, 10 ms a token),
so that what a request costs is not counted into its tokens. `by_default` is what a worker's own outbox makes
of that many streams with its default settings; `tokens_per_event` and `longest_gap_p50_ms` (the median of the
streams' longest times without anything new) say what clients see of it. The other figures are for comparison:
one token in each message, four (`merged`) and ten (`merged_by_ten`). The door and the proxy are the same
router process, asked in turn; the ASGI server makes its events itself, so that the door's figure beyond it is
all that a router does. Nothing is random.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import psutil
import uvloop

from bench.data_path import RESULTS, SMOKE, Size, machine
from bench.one_instance import controller_of
from bench.processes import announced, started

DOORS = ("asgi", "http", "grpc")


class Doors:
    """The servers, and the runs made with them."""

    def __init__(self, addresses: dict[str, str], worker: str, pids: dict[str, int], size: Size) -> None:
        self._addresses, self._worker, self._size = addresses, worker, size
        self._processes = {door: psutil.Process(pid) for door, pid in pids.items()}

    async def load(
        self, door: str, requests: int, tokens: int, *, merged: int = 1, concurrency: int = 0
    ) -> dict[str, Any]:
        """One run of the load generator, with the server's CPU seconds.

        Args:
            door: one of DOORS.
            requests: in all.
            tokens: of each.
            merged: tokens in a message; 0: as a worker with its default settings has it.
            concurrency: requests at once; 0: as many as the size says.
        """
        size = self._size
        shape = (requests, concurrency or size.streams, tokens, size.interval_ms, merged)
        where = (
            ("bench.load", "proxy", self._addresses[door], self._worker)
            if door == "grpc"
            else ("bench.http_load", self._addresses[door])
        )
        before = self._processes[door].cpu_times()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *where, *map(str, shape), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        after = self._processes[door].cpu_times()
        if process.returncode != 0:
            raise SystemExit(f"error: the load generator failed at {door}")
        result: dict[str, Any] = json.loads(out)
        result["cpu_s"] = (after.user + after.system) - (before.user + before.system)
        return result

    async def cost(self, door: str) -> dict[str, float]:
        """CPU µs of the server: per request; per token by default, and of one and of several to a message."""
        size = self._size
        await self.load(door, size.streams, 1)
        short = await self.load(door, size.requests, 1)
        figures = {
            "cpu_us_per_request": 1e6 * short["cpu_s"] / short["requests"],
            "requests_per_s": short["requests"] / short["wall_s"],
        }
        for name, merged in (
            ("cpu_us_per_token_by_default", 0),
            ("cpu_us_per_token", 1),
            ("cpu_us_per_token_merged", size.merged_tokens),
            ("cpu_us_per_token_merged_by_ten", 10),
        ):
            if not merged and door == "asgi":
                continue  # It has no worker.
            few = await self.load(door, size.streams, size.few_tokens, merged=merged)
            many = await self.load(door, size.streams, size.many_tokens, merged=merged)
            figures[name] = 1e6 * (many["cpu_s"] - few["cpu_s"]) / (many["tokens"] - few["tokens"])
            if not merged and door == "http":
                figures["tokens_per_event"] = many["tokens"] / many["events"]
                gaps = many["longest_gap_ms"]
                figures["longest_gap_p50_ms"] = gaps[len(gaps) // 2]
        return figures

    async def ttft(self) -> dict[str, float]:
        """Median TTFT in ms of each door, one request at a time, the doors taking turns."""
        seen: dict[str, list[float]] = {door: [] for door in DOORS}
        for _ in range(self._size.ttft_rounds):
            for door in DOORS:
                run = await self.load(door, self._size.ttft_requests, 1, concurrency=1)
                seen[door] += run["ttft_ms"]
        return {door: sorted(values)[len(values) // 2] for door, values in seen.items()}


async def measure(size: Size) -> dict[str, Any]:
    """Everything, once."""
    async with (
        started("bench.paced_worker", "0") as (worker, _),
        controller_of(worker) as controller,
        started("bench.sse_echo") as (echo, echo_pid),
    ):
        sets = ("listen=127.0.0.1:0", "http.listen=127.0.0.1:0", f"controller={controller}")
        arguments = [part for item in sets for part in ("--set", item)]
        async with announced("services.router", *arguments) as (router, pid):
            addresses = {"asgi": echo, "http": router["http"].partition("//")[2], "grpc": router["address"]}
            doors = Doors(addresses, worker, {"asgi": echo_pid, "http": pid, "grpc": pid}, size)
            results: dict[str, Any] = {
                "machine": machine(),
                "size": {name: getattr(size, name) for name in size.__slots__},
            }
            for door in DOORS:
                results[door] = await doors.cost(door)
                print(f"{door}: {results[door]}", file=sys.stderr)
            results["ttft_p50_ms"] = await doors.ttft()
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
        (RESULTS / "http_door.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
