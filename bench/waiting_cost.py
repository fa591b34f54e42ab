"""What order and estimates of waiting requests cost a router, in CPU of its core alone.

    python -m bench.waiting_cost           # one JSON line
    python -m bench.waiting_cost --smoke   # the same code, shortly

Twenty instances of one model. Each figure is the least of five rounds, in microseconds of CPU: a request that
finds a place, and its end; a worker's load message; a request that waits and leaves again, without and with
an estimate that its caller asked for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from bench.data_path import machine
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.request import OpenWatch, PendingRequest, Place

_INSTANCES, _BATCH_SIZE = 20, 256
_ROUNDS = 5
_READY = types_pb2.INSTANCE_STATE_READY
_PATIENT = types_pb2.Slo(ttft_ms=1e9)


class Rig:
    """A core on a clock of its own."""

    def __init__(self) -> None:
        self.core = RouterCore(CoreSettings(100_000, 0, 1.0, 2.0), LeastExpectedWait())
        self.now = 0.0
        self._requests = 0
        table = control_pb2.RoutingTable(
            epoch=1,
            term=1,
            models=[control_pb2.RoutedModel(name="m")],
            instances=[
                control_pb2.RoutedInstance(
                    instance_id=f"i{index}", incarnation=1, model="m", address=f"h{index}:1", state=_READY
                )
                for index in range(_INSTANCES)
            ],
        )
        opened = [one for one in self.core.snapshot(table, 0.0) if isinstance(one, OpenWatch)]
        self._watches = {one.instance_id: one.watch for one in opened}
        self.load_all(0)

    def load_all(self, running: int) -> None:
        """Every instance tells that it runs so many requests."""
        for key in self._watches:
            self.load(key, running)

    def load(self, key: str, running: int) -> None:
        """One instance does."""
        message = worker_pb2.WatchLoadResponse(
            instance_id=key,
            incarnation=1,
            role=types_pb2.ROLE_MIXED,
            state=_READY,
            batch_size=_BATCH_SIZE,
            running=types_pb2.ClassCounts(interactive=running),
            clock_ms=1e3 * self.now,
        )
        self.core.load(key, self._watches[key], message, self.now)

    def request(self, *, refuse_if_late: bool = False) -> PendingRequest:
        """A new one, a tenth of a millisecond after the last."""
        self.now += 1e-4
        self._requests += 1
        return PendingRequest(
            f"r{self._requests}",
            "m",
            RequestClass.INTERACTIVE,
            self.now,
            slo=_PATIENT,
            refuse_if_late=refuse_if_late,
        )

    def place(self, count: int) -> None:
        """Requests that find a place, one after the other."""
        for _ in range(count):
            [placed] = self.core.submit(self.request(), self.now)
            assert isinstance(placed, Place)
            self.core.release(placed.placement.reservation, self.now)

    def hear(self, count: int) -> None:
        """Load messages."""
        for index in range(count):
            self.now += 1e-3
            self.load(f"i{index % _INSTANCES}", 0)

    def wait(self, count: int, *, refuse_if_late: bool) -> None:
        """Requests that wait, and then leave."""
        waiting = []
        for _ in range(count):
            request = self.request(refuse_if_late=refuse_if_late)
            assert self.core.submit(request, self.now) == []
            waiting.append(request)
        for request in waiting:
            self.core.cancel(request)


def _least_us(act: Callable[[int], None], count: int) -> float:
    least = float("inf")
    for _ in range(_ROUNDS):
        began = time.process_time()
        act(count)
        least = min(least, time.process_time() - began)
    return round(1e6 * least / count, 1)


def measure(count: int) -> dict[str, float]:
    """The figures."""
    rig = Rig()
    figures = {"place_us": _least_us(rig.place, count), "load_message_us": _least_us(rig.hear, count)}
    rig.load_all(_BATCH_SIZE)
    figures["wait_us"] = _least_us(lambda n: rig.wait(n, refuse_if_late=False), count // 10)
    figures["wait_with_estimate_us"] = _least_us(lambda n: rig.wait(n, refuse_if_late=True), count // 10)
    return figures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="the same code, shortly")
    options = parser.parse_args()
    figures = measure(200 if options.smoke else 10_000)
    print(json.dumps({"machine": machine(), "figure": "waiting_cost", **figures}), flush=True)


if __name__ == "__main__":
    main()
