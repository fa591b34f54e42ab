"""Routers that speak the controller's stream as real ones do, and whose requests exist in figures alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence

import grpc

from chiron.internal.v1 import control_pb2 as pb
from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.controllers import Controllers
from chiron.rpc.streams import write
from chiron.v1 import cluster_pb2, types_pb2

_INTERVAL_S = 1.0
_TOKENS, _PROMPT_TOKENS, _SERVICE_S = 300, 500, 6.0
"""Of one answer."""
_GROUPS = 8
"""Of batch requests that wait, for each model."""


class SimulatedDemand:
    """Interactive requests of each model, which run on its instances in equal parts; they rise and fall."""

    def __init__(self, models: Sequence[str], requests: float, wave: float, period_s: float) -> None:
        """A model's mean number of requests that run, the wave's share of it, and its period; out of step."""
        self._phase = {model: index / len(models) for index, model in enumerate(models)}
        self._requests, self._wave, self._period_s = requests, wave, period_s
        self._serving: Counter[str] = Counter()
        self._began = time.monotonic()
        self.models = list(models)

    def running(self, model: str) -> float:
        """Requests of the model that run or wait now."""
        turn = (time.monotonic() - self._began) / self._period_s + self._phase[model]
        return self._requests * (1 + self._wave * math.sin(2 * math.pi * turn))

    def count(self, serving: Counter[str]) -> None:
        """How many instances each model has."""
        self._serving = serving

    def work(self, status: cluster_pb2.InstanceStatus) -> None:
        """Brings one instance's figures up to date: a second has passed."""
        share = self.running(status.model) / max(1, self._serving[status.model])
        load, local = status.load, status.local
        running = min(load.batch_size, round(share))
        load.running.interactive = running
        load.waiting.interactive = max(0, round(share) - running)
        load.kv_usage = running / load.batch_size
        load.tokens_per_s = running * _TOKENS / _SERVICE_S
        load.itl_mean_ms = 1e3 * _SERVICE_S / _TOKENS
        load.safe_batch_size = load.batch_size
        done, finished = round(running / _SERVICE_S), load.finished_interactive
        finished.requests += done
        finished.output_tokens += done * _TOKENS
        finished.prompt_tokens += done * _PROMPT_TOKENS
        finished.output_tokens_sq += done * 1.2 * _TOKENS**2
        finished.service_ms += done * _SERVICE_S * 1e3
        status.state_age_ms += 1e3 * _INTERVAL_S
        status.load_age_ms = 40.0
        local.autoscaler = "model"
        local.backpressure = 0.8 + 0.1 * load.kv_usage
        local.wanted_batch_size, local.itl_slo_ms = load.batch_size, 30.0
        local.reason = "the batch size keeps the tightest ITL SLO of the requests that run"
        for index, name in enumerate(("predicted_ms", "margin", "batch", "tokens", "kv", "slo_ms")):
            local.numbers[name] = load.kv_usage * (index + 1)

    def report(self, sequence: int, routers: int) -> pb.RouterReport:
        """What one of so many routers tells each second."""
        report = pb.RouterReport(sequence=sequence, interval_ms=1e3 * _INTERVAL_S)
        for model in self.models:
            arrived = round(self.running(model) / _SERVICE_S / routers)
            demand = report.demand.add(model=model, ttft_met=arrived, ttft_seen=arrived, slo_arrived=arrived)
            demand.arrived.interactive = demand.finished.interactive = arrived
            demand.queued.CopyFrom(types_pb2.ClassCounts(batch=4 * _GROUPS))
            for group in range(_GROUPS):
                demand.batch_groups.add(
                    deadline_in_ms=3.6e6 * (group + 1), requests=4, prompt_tokens=4 * _PROMPT_TOKENS
                )
        return report


async def run_router(name: str, controllers: Sequence[str], demand: SimulatedDemand, routers: int) -> None:
    """One router: takes tables and reports every second, until cancelled. Raises what its stream raises."""
    links = Controllers(controllers)
    call: grpc.aio.StreamStreamCall[pb.ConnectRouterRequest, pb.ConnectRouterResponse]
    call = control_pb2_grpc.ControlServiceStub(links.channel()).ConnectRouter()

    async def read() -> None:
        async for _ in call:
            pass

    reading = asyncio.create_task(read())
    hello = pb.RouterHello(router_id=name, address="127.0.0.1:1")
    try:
        await write(call, pb.ConnectRouterRequest(hello=hello))
        sequence = 0
        while not reading.done():
            sequence += 1
            await write(call, pb.ConnectRouterRequest(report=demand.report(sequence, routers)))
            await asyncio.wait({reading}, timeout=_INTERVAL_S)
        reading.result()
    finally:
        reading.cancel()
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await links.close()
