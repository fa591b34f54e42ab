"""Keeps a cluster's services running, as a service manager would, and says when that has no point."""

from __future__ import annotations

import asyncio
import os
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from chiron.cluster.process import ServiceProcess, StartError

SWEEPER = "sweeper"
MOST_RESTARTS = 5
RESTARTS_WITHIN_S = 60.0
"""A router or agent that ends more often than so many times in so long a time is not started again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Times before what serving can do without is started again: twice as long with each try in vain."""

Told = Callable[[str], None]


class RestartBudget:
    """How often a service may end before starting it again has no point. Pure; times are monotonic."""

    def __init__(self, most: int = MOST_RESTARTS, within_s: float = RESTARTS_WITHIN_S) -> None:
        self._within_s = within_s
        self._ends: deque[float] = deque(maxlen=most)

    def spend(self, now: float) -> bool:
        """It has ended now, in seconds: whether it may be started again."""
        full = len(self._ends) == self._ends.maxlen
        spent = full and (not self._ends or now - self._ends[0] < self._within_s)
        self._ends.append(now)
        return not spent


class Keeper:
    """Starts again what ends, and says which end the cluster does not survive.

    Agents and routers are started again, unless they end time and again. Controllers whose state outlives
    them, and the etcd that holds it, are started again for as long as the cluster lives: what serves goes on
    without them, so that losing them is no reason to end it. A controller that takes the state along is.
    """

    def __init__(
        self,
        processes: Mapping[str, ServiceProcess],
        start_again: Callable[[str], Awaitable[ServiceProcess]],
        *,
        lasting_state: bool,
    ) -> None:
        """Watches nothing yet.

        Args:
            processes: the running services by name, as they are at any time.
            start_again: starts one that has ended, with its address; raises StartError.
            lasting_state: whether the cluster's state outlives its controllers.
        """
        self._processes = processes
        self._start_again = start_again
        self._lasting_state = lasting_state
        self._budgets: dict[str, RestartBudget] = defaultdict(RestartBudget)
        self._pauses_s: dict[str, float] = {}

    async def first_loss(self, lost: Told | None) -> str:
        """Returns which service the cluster cannot do without ended, and how.

        `lost` is told of everything that the cluster survives.
        """
        tell = lost or (lambda _: None)
        # Without the sweeper there is all that a cluster needs.
        watched = [service for name, service in self._processes.items() if name != SWEEPER]
        keeping = [asyncio.ensure_future(self._keep(service, tell)) for service in watched]
        try:
            done, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def _keep(self, service: ServiceProcess, tell: Told) -> str:
        while True:
            how = f"{service.name} ended with status {await service.wait()}"
            if self._dispensable(service):
                tell(f"{how}; {self._without(service)}")
                service = await self._persist(service, tell)
                tell(f"{service.name} is started again as pid {service.pid}")
                continue
            outcome = await self._start_within_budget(service, how)
            if isinstance(outcome, str):
                return outcome
            service = outcome
            tell(f"{how}; started again as pid {service.pid}")

    async def _start_within_budget(self, service: ServiceProcess, how: str) -> ServiceProcess | str:
        """The service started again, or why the cluster ends."""
        why = service.tail()
        pause_s = FIRST_PAUSE_S
        while self._may_start_again(service):
            try:
                return await self._start_again(service.name)
            except StartError as error:
                why = f", and it does not start again: {error}"
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return f"{how}{why}"

    async def _persist(self, service: ServiceProcess, tell: Told) -> ServiceProcess:
        """Starts it again, however often that takes."""
        name = service.name
        if service.age_s > RESTARTS_WITHIN_S:
            self._pauses_s.pop(name, None)
        told = ""
        while True:
            pause_s = self._pauses_s.get(name, FIRST_PAUSE_S)
            self._pauses_s[name] = min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)
            try:
                return await self._start_again(name)
            except StartError as error:
                if str(error) != told:
                    told = str(error)
                    tell(f"{name} does not start again yet: {told}")

    def _without(self, service: ServiceProcess) -> str:
        others = any(
            name.startswith("controller") and name != service.name and other.running
            for name, other in self._processes.items()
        )
        led = others and service.name.startswith("controller")
        return "another controller leads" if led else "what serves goes on"

    def _dispensable(self, service: ServiceProcess) -> bool:
        return service.name == "etcd" or (self._lasting_state and service.name.startswith("controller"))

    def _may_start_again(self, service: ServiceProcess) -> bool:
        kept = service.name.startswith(("node-", "router-")) and self._processes.get(service.name) is service
        return kept and self._budgets[service.name].spend(time.monotonic())


def keeps_state(config: Path | None, settings: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    """Whether controllers that are so set keep their state where it outlives them."""
    stated = settings.get("store.kind") or {**os.environ, **environ}.get("CHIRON_CONTROLLER_STORE_KIND")
    if stated is None and config is not None:
        try:
            table = tomllib.loads(config.read_text(encoding="utf-8"))
            stated = table["controller"]["store"]["kind"]
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
            return False
    return stated == "etcd"


async def start_sweeper(directory: Path, environ: Mapping[str, str]) -> ServiceProcess:
    """What ends the workers of dead agents below the folder, should the cluster be killed; see sweeper.py."""
    return await ServiceProcess.start(
        SWEEPER,
        "chiron.cluster.sweeper",
        log=directory / "sweeper.log",
        settings={"directory": str(directory)},
        environ=environ,
    )
