"""The real controller, with a notebook beside it: how late its loop runs, and when routers told of need.

    python -m bench.watched_controller [--set KEY=VALUE ...]
Started as a service is. Appends JSON lines to the file that CHIRON_BENCH_NOTES names: once a second
`{"at_s", "late_ms", "own_ms"}`, the lateness of a sleep of 10 ms and the CPU time that the loop's thread took
meanwhile, many times over: what is late without it has waited for a core; `{"need_ns", "models", "by"}` when
a message is taken up that shows these models short of slots: a router's report or call tells of interactive
requests that wait, an agent's report of an instance whose slots are all taken. `at_s` is CLOCK_MONOTONIC,
`need_ns` the wall clock, as in spans. CHIRON_BENCH_PROFILE names a file for a profile of the whole run, in
CPU time.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from chiron.internal.v1 import control_pb2
from chiron.service import run_service
from chiron.v1 import cluster_pb2
from services.global_controller.app import serve
from services.global_controller.config import ControllerConfig
from services.global_controller.controller import Controller
from services.global_controller.registry import AgentLink, RouterLink

_SLEEP_S = 0.01


async def watch_loop(note: Callable[[dict[str, Any]], None]) -> None:
    """Notes lateness until cancelled."""
    while True:
        late_ms: list[float] = []
        own_ms: list[float] = []
        until = time.monotonic() + 1.0
        while (began := time.monotonic()) < until:
            used = time.thread_time()
            await asyncio.sleep(_SLEEP_S)
            late_ms.append(round(1e3 * (time.monotonic() - began - _SLEEP_S), 2))
            own_ms.append(round(1e3 * (time.thread_time() - used), 2))
        note({"at_s": until, "late_ms": late_ms, "own_ms": own_ms})


def note_need(note: Callable[[dict[str, Any]], None]) -> None:
    """Has need that is told noted before the controller looks at it."""
    take_router, take_call = Controller.router_reported, Controller.router_called
    take_agent = Controller.report

    def tell(by: str, models: Iterable[str]) -> None:
        if short := sorted(set(models)):
            note({"need_ns": time.time_ns(), "models": short, "by": by})

    def reported(self: Controller, link: RouterLink, report: control_pb2.RouterReport) -> None:
        tell("router", (one.model for one in report.demand if one.queued.interactive))
        take_router(self, link, report)

    def called(self: Controller, link: RouterLink, call: control_pb2.RouterCall) -> None:
        tell("call", (one.model for one in call.models))
        take_call(self, link, call)

    async def agent_reported(self: Controller, link: AgentLink, report: control_pb2.AgentReport) -> None:
        statuses = [one.status for one in report.instances]
        tell("agent", (one.model for one in statuses if 0 < one.load.batch_size <= _held(one.load)))
        await take_agent(self, link, report)

    Controller.router_reported, Controller.router_called = reported, called  # type: ignore[method-assign]
    Controller.report = agent_reported  # type: ignore[method-assign]


def _held(load: cluster_pb2.InstanceLoad) -> int:
    return load.running.interactive + load.waiting.interactive


async def watched(config: ControllerConfig, stop: asyncio.Event) -> None:
    """As `serve`, and takes notes."""
    notes = await asyncio.to_thread(open, os.environ["CHIRON_BENCH_NOTES"], "a", 1)
    with notes:

        def note(what: dict[str, Any]) -> None:
            notes.write(json.dumps(what) + "\n")

        note_need(note)
        watching = asyncio.create_task(watch_loop(note))
        try:
            await serve(config, stop)
        finally:
            watching.cancel()


def main() -> int:
    """Runs until SIGTERM; returns the exit status."""
    file = os.environ.get("CHIRON_BENCH_PROFILE", "")
    if not file:
        return run_service("controller", ControllerConfig, watched)
    # CPU time: what others take of the cores is no part of it.
    profile = cProfile.Profile(time.thread_time)
    try:
        return profile.runcall(run_service, "controller", ControllerConfig, watched)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    sys.exit(main())
