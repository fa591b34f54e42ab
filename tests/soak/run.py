"""One run: a cluster, a load, a schedule of faults, and what is left of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.soak import history
from tests.soak.asks import Rates
from tests.soak.cluster import PREFIX, SoakCluster
from tests.soak.ends import End, Fault
from tests.soak.engine import CONFLICTS
from tests.soak.expected import Oracle
from tests.soak.gpus import GpuWatch
from tests.soak.history_watch import HistoryWatch
from tests.soak.injector import Injector
from tests.soak.journals import Journals
from tests.soak.load import Load
from tests.soak.report import Report
from tests.soak.schedule import Fault as Scheduled
from tests.soak.schedule import Shape
from tests.soak.settling import settle
from tests.soak.width import missing

READY_S = 120.0
_HISTORY_S = 30.0
"""Time within which the end of etcd's history is read."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    seed: int
    seconds: float
    schedule: tuple[Scheduled, ...]
    shape: Shape
    rates: Rates
    reckless: bool
    folder: Path


class Diary:
    """What happened when, for people."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._begin = time.monotonic()

    def __call__(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._file.write(f"{clock} {time.monotonic() - self._begin:8.3f} {text}\n")
        self._file.flush()


async def run(options: Options, diary: Diary) -> Report:
    """Runs it. Raises TimeoutError when the cluster does not even come up."""
    report = Report(seed=options.seed, seconds=options.seconds)
    async with (
        SoakCluster(options.shape, options.folder, diary) as cluster,
        Oracle(cluster.versions.arguments) as oracle,
    ):
        async with asyncio.timeout(READY_S):
            await cluster.apply()
            while left := await settle(cluster, 5.0):
                diary(f"coming up: {'; '.join(left)}")
        diary("the cluster is ready")
        gpus = GpuWatch(cluster.processes, diary)
        journals = Journals(cluster.journals, diary)
        past = HistoryWatch(cluster.etcd_endpoints, PREFIX, diary)
        watching = asyncio.gather(gpus.run(), journals.run(), past.run())
        try:
            await _strain(cluster, oracle, past, options, report, diary)
            left = await settle(cluster)
            if not left:
                left = await missing(cluster.routers, cluster.versions, oracle, cluster.width)
                left += await settle(cluster)
            for line in left:
                diary(f"unresolved: {line}")
            breaches = await _breaches(past, diary)
            left += [
                *breaches.terms,
                *breaches.handovers,
                *journals.breaches,
                *await _drained(cluster, diary),
            ]
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        report.unresolved = len(left)
        report.gpu_conflicts = (
            len(gpus.conflicts) + len(breaches.gpus) + _engine_conflicts(cluster.gpu_folder, diary)
        )
    return report


async def _strain(
    cluster: SoakCluster,
    oracle: Oracle,
    past: HistoryWatch,
    options: Options,
    report: Report,
    diary: Diary,
) -> None:
    """Load and faults at once; both are over when it returns."""
    load = Load(oracle, cluster.versions, options.seed, options.rates, diary)
    injector = Injector(cluster, past, diary, reckless=options.reckless)
    over = asyncio.Event()

    async def strike() -> None:
        least = asyncio.create_task(asyncio.sleep(options.seconds))
        await injector.run(options.schedule)
        await least
        diary("the faults are over")
        over.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(cluster.routers, over))
        group.create_task(strike())
    diary("the load has ended")
    report.faults, report.skipped, report.late = injector.injected, injector.skipped, injector.late
    report.kinds = dict(sorted(injector.kinds.items()))
    report.requests, report.retried, report.shed = load.requests, load.retried, load.shed
    report.resumed, report.tokens = load.resumed, load.tokens
    for end in End:
        setattr(report, end.value, load.ends[end])
    report.failed = report.refused + report.not_resumed + report.lost
    report.duplicated, report.token_errors = load.faulty[Fault.DUPLICATED], load.faulty[Fault.TOKEN]


async def _breaches(past: HistoryWatch, diary: Diary) -> history.Breaches:
    if not await past.catch_up(_HISTORY_S) or past.dropped:
        missing = past.dropped or "etcd does not tell the end of its history"
        diary(f"history: {missing}")
        return history.Breaches(terms=(missing,))
    diary(f"the history has {len(past.writes)} writes")
    breaches = history.check(past.writes, PREFIX)
    for line in (*breaches.terms, *breaches.gpus, *breaches.handovers):
        diary(f"history: {line}")
    return breaches


async def _drained(cluster: SoakCluster, diary: Diary) -> list[str]:
    """Stops the cluster in order; returns what did not end."""
    left = []
    try:
        await cluster.drain()
    except TimeoutError:
        left = [f"{name} did not end" for name, service in cluster.services.items() if service.up]
    left += [
        f"process {process.pid} (session {process.session}) is left"
        for process, _ in cluster.processes.live()
    ]
    for line in left:
        diary(f"unresolved: {line}")
    return left


def _engine_conflicts(folder: Path, diary: Diary) -> int:
    """What engines wrote that found their GPU held."""
    file = folder / CONFLICTS
    lines = file.read_text().splitlines() if file.exists() else []
    for line in lines:
        diary(f"GPU conflict: {line}")
    return len(lines)
