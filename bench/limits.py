"""What a router bears: thousands of idle streams, a client that opens and cancels, readers that stall.

    python -m bench.limits             # about 3 minutes; bench/results/limits.json
    python -m bench.limits --pin       # the router on a core of its own, everything else on the others
    python -m bench.limits --abandoned-per-s 0    # without the limit on what is abandoned
    python -m bench.limits --smoke     # a few seconds, to see that it runs

A steady load of proxied requests of one token runs all the time, so that its time to the first token can be
compared: alone, beside the idle streams, beside the churn. After each part the router must hold nothing. The
readers that stall do so at a router and a worker of their own (bench.stalled).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import uvloop

from bench.data_path import RESULTS, machine
from bench.one_instance import controller_of
from bench.processes import started
from bench.stalled import stalled
from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

_IDLE_CHANNELS = 16
_SETTLE_S = 30.0
_HELD = ("calls", "streams", "waiting", "reservations", "lookaside", "started")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    idle_streams: int = 5000
    churns_per_s: tuple[float, ...] = (200.0, 1000.0)
    churn_s: float = 30.0
    probe_interval_s: float = 0.05
    probes: int = 400
    readers: int = 32
    reader_tokens: int = 3000


SMOKE = Size(idle_streams=50, churns_per_s=(100.0,), churn_s=1.0, probes=20, readers=2, reader_tokens=50)


class Limits:
    """One router, and what is done to it."""

    def __init__(self, door: str, router_pid: int, size: Size) -> None:
        self._door, self._size = door, size
        self._process = psutil.Process(router_pid)
        self._channel = open_channel(door)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._state = router_pb2_grpc.RouterServiceStub(self._channel)

    def rss_mib(self) -> float:
        """The router's resident memory."""
        return float(self._process.memory_info().rss) / 2**20

    def cpu_s(self) -> float:
        """The router's CPU time so far."""
        used = self._process.cpu_times()
        return float(used.user + used.system)

    async def steady(self, until: asyncio.Event | None = None) -> dict[str, float]:
        """The steady load, for a number of requests or until told: its times to the first token, in ms."""
        size, failed = self._size, 0
        times: list[float] = []
        request = pb.GenerateRequest(model="bench", prompt="x", sampling=pb.SamplingParams(max_tokens=1))
        due = time.perf_counter()
        while not until.is_set() if until is not None else len(times) + failed < size.probes:
            begun = time.perf_counter()
            try:
                call = self._stub.Generate(request, timeout=30)
                await call.read()
                times.append(1e3 * (time.perf_counter() - begun))
                await call.read()
            except grpc.aio.AioRpcError:
                failed += 1
            due = max(due + size.probe_interval_s, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
        times.sort()
        return {
            "requests": len(times),
            "failed": failed,
            "ttft_p50_ms": statistics.median(times),
            "ttft_p99_ms": times[int(0.99 * (len(times) - 1))],
        }

    async def empty(self) -> None:
        """Returns once the router holds nothing any more. Raises SystemExit when that does not come about."""
        deadline = time.perf_counter() + _SETTLE_S
        while True:
            counts = (await self._state.GetRouterState(router_pb2.GetRouterStateRequest())).counts
            held = {name: getattr(counts, name) for name in _HELD}
            held["waiting"] = counts.waiting.interactive + counts.waiting.batch
            if not any(held.values()):
                return
            if time.perf_counter() > deadline:
                raise SystemExit(f"error: the router still holds {held} after {_SETTLE_S:g} s")
            await asyncio.sleep(0.1)

    async def idle(self) -> dict[str, Any]:
        """Many streams that have had their first token and wait for ever."""
        count = self._size.idle_streams
        channels = [open_channel(self._door) for _ in range(_IDLE_CHANNELS)]
        stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        request = pb.GenerateRequest(
            model="bench", prompt="x", sampling=pb.SamplingParams(max_tokens=2, ignore_eos=True)
        )
        before = self.rss_mib()
        begun = time.perf_counter()
        calls = [stubs[index % len(stubs)].Generate(request) for index in range(count)]
        for call in calls:
            await call.read()
        opened_s = time.perf_counter() - begun
        during = self.rss_mib()
        cpu, at = self.cpu_s(), time.perf_counter()
        load = await self.steady()
        busy = (self.cpu_s() - cpu) / (time.perf_counter() - at)
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
        await self.empty()
        return {
            "streams": count,
            "opened_s": opened_s,
            "rss_before_mib": before,
            "rss_during_mib": during,
            "rss_after_mib": self.rss_mib(),
            "kib_per_stream": 1024 * (during - before) / count,
            "router_cpu_share": busy,
            **load,
        }

    async def churn(self, per_s: float) -> dict[str, Any]:
        """A client that opens and cancels so many streams a second."""
        size = self._size
        before, over = self.rss_mib(), asyncio.Event()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.churn",
            self._door,
            str(per_s),
            str(size.churn_s),
            stdout=asyncio.subprocess.PIPE,
        )
        steady = asyncio.create_task(self.steady(over))
        seen: list[float] = []
        cpu, at = self.cpu_s(), time.perf_counter()

        async def watch() -> None:
            while True:
                seen.append(self.rss_mib())
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        out, _ = await process.communicate()
        cpu, wall_s = self.cpu_s() - cpu, time.perf_counter() - at
        over.set()
        watching.cancel()
        if process.returncode:
            raise SystemExit("error: the client that opens and cancels has failed")
        load = await steady
        await self.empty()
        churned = json.loads(out)
        half = len(seen) // 2
        return {
            "streams": churned["streams"],
            "streams_per_s": churned["streams"] / churned["wall_s"],
            "first_tokens": churned["first_tokens"],
            "turned_away": churned["turned_away"],
            "unexpected_ends": churned["unexpected"],
            "router_cpu_share": cpu / wall_s,
            "router_cpu_us_per_stream": 1e6 * cpu / churned["streams"],
            "rss_before_mib": before,
            "rss_most_first_half_mib": max(seen[: half or 1]),
            "rss_most_second_half_mib": max(seen[half:]),
            "rss_after_mib": self.rss_mib(),
            **load,
        }

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()


async def measure(size: Size, abandoned_per_s: float | None, *, pin: bool) -> dict[str, Any]:
    """Everything, once."""
    cores = psutil.Process().cpu_affinity()
    if pin:
        psutil.Process().cpu_affinity(cores[1:])
    async with started("bench.paced_worker", "0") as (worker, _), controller_of(worker) as controller:
        sets = ["listen=127.0.0.1:0", f"controller={controller}"]
        if abandoned_per_s is not None:
            sets.append(f"abandoned_per_s={abandoned_per_s:g}")
        arguments = [part for item in sets for part in ("--set", item)]
        async with started("services.router", *arguments) as (door, pid):
            if pin:
                # Also its threads, which are there already.
                for thread in psutil.Process(pid).threads():
                    os.sched_setaffinity(thread.id, cores[:1])
            limits = Limits(door, pid, size)
            # What the first requests allocate is there for good.
            await limits.steady()
            results: dict[str, Any] = {"machine": machine(), "alone": await limits.steady()}
            parts = {"idle": limits.idle}
            for per_s in size.churns_per_s:
                parts[f"churn {per_s:g}"] = functools.partial(limits.churn, per_s)
            for name, part in parts.items():
                figures = await part()
                figures["ttft_p50_ratio"] = figures["ttft_p50_ms"] / results["alone"]["ttft_p50_ms"]
                results[name] = figures
                print(f"{name}: {figures}", file=sys.stderr)
            results["alone again"] = await limits.steady()
            await limits.close()
    results["stalled"] = await stalled(size.readers, size.reader_tokens)
    print(f"stalled: {results['stalled']}", file=sys.stderr)
    return results


def main() -> None:
    """Runs the benchmark and prints one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="run everything once, shortly")
    parser.add_argument(
        "--churn-per-s", type=float, action="append", help="streams a second; may be repeated"
    )
    parser.add_argument("--abandoned-per-s", type=float, help="the router's setting; default: its own")
    parser.add_argument("--pin", action="store_true", help="the router on a core of its own")
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else Size()
    if arguments.churn_per_s:
        size = dataclasses.replace(size, churns_per_s=tuple(arguments.churn_per_s))
    results = uvloop.run(measure(size, arguments.abandoned_per_s, pin=arguments.pin))
    if not arguments.smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "limits.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
