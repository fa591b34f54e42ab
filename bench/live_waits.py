"""How well a live router estimates waits: what it tells during bursts, against what comes.

    python -m bench.live_waits                  # five bursts in about six minutes; one JSON line
    python -m bench.live_waits --same-lengths   # answers of one mean length in all bursts
    python -m bench.live_waits --smoke          # one short burst, to see that it works

A local cluster of sim engines. Requests with lognormal lengths arrive at 60 % of what the instances serve,
and in bursts at two to four times as much; before each burst the fleet is scaled to one, two or three
instances and the mean length changes at a stroke, which nobody can know before such answers have ended. While
a queue stands, a probe asks the router every quarter of a second how long a new request would wait
(GetRouterState, as `chiron router` does), sends one at once and notes how long it waited in the router
(RouteResponse.queued_ms). Only waits of more than half a second count. `estimate` is of the mean;
`coverage_95` the share of waits within the 95 % quantile. The baseline, `position_alone`, is the place in the
queue times the mean time per place over all probes, known in hindsight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.data_path import machine
from chiron.cluster.local import LocalCluster
from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.sim.wait_figures import median_relative_error, r_squared
from chiron.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc

_MODEL = "toy"
_INSTANCES, _BATCH_SIZE = 2, 8
_MEAN_TOKENS, _SIGMA, _MOST_TOKENS = 60.0, 0.8, 400
_OTHER_TOKENS = (40.0, 120.0)
_MOST_INSTANCES = 3
_TIME_SCALE = 4.0
"""Engines so slow that a busy machine keeps up with them."""
_CALM_SHARE = 0.6
_PROBE_S = 0.25
_LEAST_S = 0.5
_SEED = 7


@dataclass(frozen=True, slots=True)
class Probe:
    """One estimate and what came of it, in seconds."""

    mean_s: float
    quantile_s: float
    ahead: int
    actual_s: float


class Load:
    """Requests at one router, each routed and then generated at the worker itself."""

    def __init__(self, address: str, draws: random.Random) -> None:
        self._draws = draws
        self._channel = open_channel(address)
        self._router = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._state = router_pb2_grpc.RouterServiceStub(self._channel)
        self._workers: dict[str, grpc.aio.Channel] = {}
        self._tasks: set[asyncio.Task[float]] = set()
        self._sent = 0
        self.probes: list[Probe] = []
        self.finished = 0
        self.turned_away = 0
        self.refused = 0
        self.mean_tokens = _MEAN_TOKENS
        self._awaited = 0, asyncio.Event()

    async def close(self) -> None:
        """Waits for what runs and ends the connections."""
        await asyncio.gather(*self._tasks)
        for channel in (self._channel, *self._workers.values()):
            await channel.close()

    def send(self) -> asyncio.Task[float]:
        """Sends a request; the task returns how long it waited in the router, in seconds."""
        self._sent += 1
        tokens = round(
            self._draws.lognormvariate(0.0, _SIGMA) * self.mean_tokens * math.exp(-(_SIGMA**2) / 2)
        )
        sampling = inference_pb2.SamplingParams(max_tokens=min(max(1, tokens), _MOST_TOKENS), ignore_eos=True)
        request = inference_pb2.GenerateRequest(
            request_id=f"r{self._sent}", model=_MODEL, prompt="Tell me.", sampling=sampling
        )
        route = asyncio.create_task(self._route(request))
        self._tasks.add(route)
        route.add_done_callback(self._tasks.discard)
        return route

    async def _route(self, request: inference_pb2.GenerateRequest) -> float:
        # What becomes of its length is not told: nobody could know it.
        asked = inference_pb2.RouteRequest(request_id=request.request_id, model=_MODEL)
        try:
            route = await self._router.Route(asked)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            self.refused += 1
            return 0.0
        request.ticket = route.ticket
        if route.address not in self._workers:
            self._workers[route.address] = open_channel(route.address)
        stream = inference_pb2_grpc.InferenceServiceStub(self._workers[route.address]).Generate(request)
        reading = asyncio.create_task(self._read(stream))
        self._tasks.add(reading)
        reading.add_done_callback(self._tasks.discard)
        return float(route.queued_ms) / 1e3

    async def _read(
        self, stream: grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
    ) -> float:
        try:
            async for _ in stream:
                pass
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            # It came to an instance that was about to stop; a client would ask for another one.
            self.turned_away += 1
        self.finished += 1
        if self.finished == self._awaited[0]:
            self._awaited[1].set()
        return 0.0

    async def reached(self, finished: int) -> None:
        """Waits until so many requests have ended."""
        self._awaited = finished, asyncio.Event()
        if self.finished < finished:
            await self._awaited[1].wait()

    async def at_rate(self, per_s: float, for_s: float) -> None:
        """Poisson arrivals."""
        until = time.monotonic() + for_s
        at = time.monotonic()
        while (at := at + self._draws.expovariate(per_s)) < until:
            await asyncio.sleep(at - time.monotonic())
            self.send()

    async def probe(self) -> None:
        """Asks how long a request would wait and sends one, again and again, while requests wait."""
        while True:
            await asyncio.sleep(_PROBE_S)
            state = await self._state.GetRouterState(router_pb2.GetRouterStateRequest())
            for queue in state.queues:
                if queue.interactive.HasField("mean_ms"):
                    probing = asyncio.create_task(self._follow(queue.interactive))
                    self._tasks.add(probing)
                    probing.add_done_callback(self._tasks.discard)

    async def _follow(self, told: router_pb2.RouterWait) -> float:
        actual_s = await self.send()
        self.probes.append(Probe(told.mean_ms / 1e3, told.quantile_ms / 1e3, told.ahead, actual_s))
        return actual_s


async def _capacity(load: Load) -> float:
    """Requests per second that the instances serve when they are full."""
    slots = _INSTANCES * _BATCH_SIZE
    for _ in range(12 * slots):
        load.send()
    await load.reached(2 * slots)
    began = time.monotonic()
    await load.reached(10 * slots)
    return 8 * slots / (time.monotonic() - began)


async def measure(
    bursts: int, length_s: float, lengths: tuple[float, float], folder: Path
) -> dict[str, object]:
    """The figures."""
    draws = random.Random(_SEED)
    cluster = LocalCluster(nodes=1, gpus=_MOST_INSTANCES, directory=folder)
    async with cluster:
        await _scale(cluster, _INSTANCES)
        load = Load(cluster.router_addresses[0], draws)
        per_s = await _capacity(load)
        await load.at_rate(_CALM_SHARE * per_s, length_s)
        probing = asyncio.create_task(load.probe())
        await _bursts(cluster, load, per_s, bursts, length_s, lengths, draws)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        await load.close()
    return _figures(load, per_s, bursts)


async def _scale(cluster: LocalCluster, instances: int) -> None:
    """Changes how many instances there are, and waits until they serve."""
    spec = cluster_pb2.ModelSpec(
        name=_MODEL,
        engine="sim",
        gpus_per_instance=1,
        max_batch_size=_BATCH_SIZE,
        min_instances=instances,
        max_instances=instances,
    )
    spec.engine_args.update({"profile": "toy", "time_scale": _TIME_SCALE})
    await cluster.apply([spec])
    await cluster.wait_for(lambda told: told.models and told.models[0].ready_instances == instances)


async def _bursts(
    cluster: LocalCluster,
    load: Load,
    per_s: float,
    bursts: int,
    length_s: float,
    lengths: tuple[float, float],
    draws: random.Random,
) -> None:
    for _ in range(bursts):
        instances = draws.randint(1, _MOST_INSTANCES)
        await _scale(cluster, instances)
        load.mean_tokens = draws.uniform(*lengths)
        served = per_s * instances / _INSTANCES * _MEAN_TOKENS / load.mean_tokens
        times = draws.uniform(2.0, 4.0)
        for_s = length_s * draws.uniform(0.3, 0.6)
        await load.at_rate(times * served, for_s)
        # What has piled up is served beside what goes on coming.
        await load.at_rate(_CALM_SHARE * served, for_s * (times - 1) / (1 - _CALM_SHARE) + length_s / 4)


def _figures(load: Load, per_s: float, bursts: int) -> dict[str, object]:
    long = [one for one in load.probes if one.actual_s > _LEAST_S]
    if len(long) < 2:
        raise AssertionError(f"{len(long)} of {len(load.probes)} probes waited: the bursts are too small")
    actual = np.array([one.actual_s for one in long])
    mean = np.array([one.mean_s for one in long])
    ahead = np.array([one.ahead for one in long], dtype=float)
    by_place = ahead * (actual.sum() / max(1.0, ahead.sum()))
    return {
        "figure": "live_waits",
        "requests": load.finished,
        "turned_away": load.turned_away,
        "refused": load.refused,
        "served_per_s": round(per_s, 1),
        "bursts": bursts,
        "probes": len(load.probes),
        "pairs": len(long),
        "waits_s": [round(float(np.quantile(actual, share)), 2) for share in (0.05, 0.5, 0.95)],
        "coverage_95": round(float(np.mean([one.actual_s <= one.quantile_s for one in long])), 3),
        "estimate": _quality(mean, actual),
        "position_alone": _quality(by_place, actual),
    }


def _quality(estimated: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, float | None]:
    found = {
        "r_squared": r_squared(estimated, actual),
        "median_relative_error": median_relative_error(estimated, actual),
    }
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


async def run(bursts: int, length_s: float, lengths: tuple[float, float]) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = await measure(bursts, length_s, lengths, Path(folder))
    print(json.dumps({"machine": machine(), "mean_tokens": lengths, **figures}), flush=True)


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--length-s", type=float, default=20.0, help="of a burst, at most about half of it")
    parser.add_argument("--same-lengths", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="the same code, shortly")
    options = parser.parse_args()
    bursts, length_s = (1, 6.0) if options.smoke else (options.bursts, options.length_s)

    lengths = (_MEAN_TOKENS, _MEAN_TOKENS) if options.same_lengths else _OTHER_TOKENS
    uvloop.run(run(bursts, length_s, lengths))


if __name__ == "__main__":
    main()
