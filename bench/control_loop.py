"""How long the control loop takes, from need that is reported to the first token of the instance it led to.

    python -m bench.control_loop            # 30 starts from zero and 30 bursts, about 8 minutes
    python -m bench.control_loop --quick    # two of each

A controller, a router and an agent with sim-engine workers, all real processes with the settings that they
have by default. A start from zero is one request for a model of which nothing runs. A burst is a dozen
streams at a model with one instance of four slots and a tight TTFT SLO, until a second instance has served.
Each has a model of its own, which is deleted afterwards.

The times are taken from what the system records of each decision: its trace (`chiron.decision.write`, when it
is in the store; `chiron.agent.receive`; `chiron.agent.start`, until the worker's process exists;
`chiron.worker.load`; `chiron.worker.first_request`, whose link leads to the trace of the request, in which
the engine's `llm_request` has its TTFT). When the controller took up the first message that showed the need
is noted by bench/watched_controller.py. Spans have the wall clock, which all processes of one host share;
that it ran as the monotonic one did is checked. One JSON line for each kind: p50, p99 and most, in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.data_path import machine
from chiron.client import ChironError, Client
from chiron.cluster import ClusterAdmin
from chiron.cluster.process import ServiceProcess
from chiron.cluster.workers import find_workers
from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.telemetry.attributes import INSTANCE_ID, TTFT_MS
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.otlp import OtlpReceiver, ReceivedSpan, otlp_receiver

_GPUS, _SLOTS, _STREAMS = 4, 4, 12
_LOAD_S, _TTFT_MS = 0.5, 200.0
_WITHIN_S = 120.0
_LARGEST_STEP_MS = 1.0
_CHAIN = (
    "chiron.decision.write",
    "chiron.agent.receive",
    "chiron.agent.start",
    "chiron.worker.load",
    "chiron.worker.first_request",
)
_ENGINE = "llm_request"


class ClockError(AssertionError):
    """The wall clock was set while it was measured by."""


class Bench:
    """A running cluster and what it tells."""

    def __init__(
        self,
        admin: ClusterAdmin,
        client: Client,
        state: router_pb2_grpc.RouterServiceStub,
        spans: OtlpReceiver,
        notes: Path,
    ) -> None:
        self._admin, self._client, self._state = admin, client, state
        self._spans, self._notes = spans, notes
        self._seen: set[str] = set()

    async def from_zero(self, name: str) -> dict[str, float]:
        """One request for a model that has no instance; the model is deleted afterwards."""
        await self._admin.apply_model(_spec(name, fewest=0, most=1))
        await self._known(1)
        asked_ns = time.time_ns()
        await self._client.complete(model=name, prompt="a b c", max_tokens=1, timeout_s=_WITHIN_S)
        found = await self._start_of(name)
        await self._admin.delete_model(name)
        await self._until(name, 0)
        await self._known(0)
        return await self._times(name, asked_ns, found)

    async def burst(self, name: str) -> dict[str, float]:
        """Streams at a model with one instance, until a second one has served; the model is deleted then."""
        await self._admin.apply_model(_spec(name, fewest=1, most=2))
        await self._known(1)
        await self._client.complete(model=name, prompt="a b c", max_tokens=1, timeout_s=_WITHIN_S)
        await self._start_of(name)
        asked_ns = time.time_ns()
        streams = [asyncio.create_task(self._stream(name)) for _ in range(_STREAMS)]
        try:
            found = await self._start_of(name)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        await self._admin.delete_model(name)
        await self._until(name, 0)
        await self._known(0)
        return await self._times(name, asked_ns, found)

    async def _stream(self, name: str) -> None:
        while True:
            with suppress(ChironError):
                await self._client.complete(model=name, prompt="a b c", max_tokens=30, ignore_eos=True)

    async def _known(self, models: int) -> None:
        """Until the router knows of so many models: it refuses requests for one that it does not know."""
        async with asyncio.timeout(_WITHIN_S):
            async for _ in self._admin.watch():
                told = await self._state.GetRouterState(router_pb2.GetRouterStateRequest())
                if told.table.models == models:
                    return

    async def _until(self, name: str, instances: int) -> None:
        async with asyncio.timeout(_WITHIN_S):
            async for shown in self._admin.watch():
                there = [one for one in shown.instances if one.model == name]
                if len(there) == instances:
                    return

    async def _start_of(self, name: str) -> Mapping[str, ReceivedSpan]:
        """The whole trace of the next instance of the model that serves its first request."""
        found: dict[str, ReceivedSpan] = {}

        def whole(spans: Sequence[ReceivedSpan]) -> bool:
            found.clear()
            for first in spans:
                instance = str(first.attributes.get(INSTANCE_ID, ""))
                if first.name != _CHAIN[-1] or instance in self._seen or not instance.startswith(f"{name}-"):
                    continue
                trace = {one.name: one for one in spans if one.trace_id == first.trace_id}
                requests = {span_id for _, span_id in first.links}
                served = [one for one in spans if one.name == _ENGINE and one.parent_id in requests]
                if served and set(_CHAIN) <= trace.keys():
                    found.update(trace)
                    found[_ENGINE] = served[0]
                    return True
            return False

        async with asyncio.timeout(_WITHIN_S):
            await self._spans.until(whole)
        self._seen.add(str(found[_CHAIN[-1]].attributes[INSTANCE_ID]))
        return found

    async def _times(self, name: str, asked_ns: int, found: Mapping[str, ReceivedSpan]) -> dict[str, float]:
        notes = [json.loads(line) for line in (await asyncio.to_thread(self._notes.read_text)).splitlines()]
        need_ns = min(
            one["need_ns"] for one in notes if one.get("need_ns", 0) >= asked_ns and name in one["models"]
        )
        write, receive, start, load = (found[one] for one in _CHAIN[:-1])
        served = found[_ENGINE]
        token_ns = served.start_ns + 1e6 * float(served.attributes[TTFT_MS])
        load_ns, process_ns = load.end_ns - load.start_ns, load.start_ns - start.end_ns
        took_ns = {
            "request_to_report": need_ns - asked_ns,
            "report_to_decision": write.end_ns - need_ns,
            "decision_to_command": receive.start_ns - write.end_ns,
            "command_to_first_token_less_load": token_ns - receive.start_ns - load_ns,
            "of_that_process_start": process_ns,
            "the_rest_of_that": token_ns - receive.start_ns - load_ns - process_ns,
            "command_to_process": start.end_ns - receive.start_ns,
            "load": load_ns,
            "loaded_to_first_token": token_ns - load.end_ns,
        }
        return {what: ns / 1e6 for what, ns in took_ns.items()}


def _spec(name: str, fewest: int, most: int) -> cluster_pb2.ModelSpec:
    spec = cluster_pb2.ModelSpec(
        name=name,
        engine="sim",
        gpus_per_instance=1,
        min_instances=fewest,
        max_instances=most,
        max_batch_size=_SLOTS,
        autoscaling=cluster_pb2.AutoscalingSpec(enabled=True, local="off"),
        slo_defaults=cluster_pb2.SloDefaults(interactive=types_pb2.Slo(ttft_ms=_TTFT_MS)),
    )
    spec.engine_args.update({"profile": "toy", "load_time_s": _LOAD_S})
    return spec


def _offset_ms() -> float:
    return (time.time_ns() - time.monotonic_ns()) / 1e6


def summary(kind: str, times: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Quantiles of each time, in milliseconds."""
    told: dict[str, Any] = {"kind": kind, "repetitions": len(times)}
    for what in times[0]:
        values = [one[what] for one in times]
        p50, p99 = (round(float(np.quantile(values, share)), 1) for share in (0.5, 0.99))
        told[what] = {"p50": p50, "p99": p99, "most": round(max(values), 1)}
    return told


async def run(zeros: int, bursts: int, folder: Path) -> None:
    """Prints the figures. Raises ClockError."""
    began_ms = _offset_ms()
    print(json.dumps({"machine": machine(), "at": "start"}), flush=True)
    async with AsyncExitStack() as stack:
        bench = await _cluster(stack, folder)
        # The controller settles before it decides anything.
        await bench.from_zero("first")
        times = [await bench.from_zero(f"zero{index}") for index in range(zeros)]
        print(json.dumps(summary("from_zero", times) | {"load_average": os.getloadavg()[0]}), flush=True)
        times = [await bench.burst(f"burst{index}") for index in range(bursts)]
        print(json.dumps(summary("burst", times) | {"load_average": os.getloadavg()[0]}), flush=True)
    if abs(step_ms := _offset_ms() - began_ms) > _LARGEST_STEP_MS:
        raise ClockError(f"the wall clock has gained {step_ms:.1f} ms on the monotonic one")


async def _cluster(stack: AsyncExitStack, folder: Path) -> Bench:
    spans = await stack.enter_async_context(otlp_receiver())
    notes = folder / "notes.jsonl"
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": spans.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "CHIRON_BENCH_NOTES": str(notes),
        "CHIRON_BENCH_PROFILE": "",
    }
    state = folder / "node-0"

    async def start(name: str, module: str, **settings: str) -> ServiceProcess:
        log = folder / f"{name}.log"
        made = await ServiceProcess.start(name, module, log=log, settings=settings, environ=environ)
        stack.push_async_callback(made.stop, 10.0)
        return made

    controller = await start("controller", "bench.watched_controller", listen="127.0.0.1:0")
    address = str(controller.announced["address"])
    router = await start(
        "router", "services.router", listen="127.0.0.1:0", controller=address, router_id="router-0"
    )
    stack.callback(_kill_workers, state)
    await start(
        "agent",
        "services.local_agent",
        controller=address,
        node_id="node-0",
        host="127.0.0.1",
        gpus=str(_GPUS),
        state_dir=str(state),
        drain_timeout_s="2",
    )
    admin = await stack.enter_async_context(ClusterAdmin([address], timeout_s=20.0))
    await _joined(admin)
    door = str(router.announced["address"])
    channel = await stack.enter_async_context(open_channel(door))
    state_of = router_pb2_grpc.RouterServiceStub(channel)
    client = await stack.enter_async_context(Client([door]))
    return Bench(admin, client, state_of, spans, notes)


def _kill_workers(state: Path) -> None:
    for worker in find_workers(state, "node-0"):
        worker.kill()


async def _joined(admin: ClusterAdmin) -> None:
    async with asyncio.timeout(_WITHIN_S):
        async for shown in admin.watch():
            if any(node.live for node in shown.nodes):
                return


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zeros", type=int, default=30, help="starts from zero")
    parser.add_argument("--bursts", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="two of each")
    options = parser.parse_args()
    zeros, bursts = (2, 2) if options.quick else (options.zeros, options.bursts)
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(run(zeros, bursts, Path(folder)))


if __name__ == "__main__":
    main()
