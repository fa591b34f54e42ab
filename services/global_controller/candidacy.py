"""Campaigns for as long as the process runs: one reign after the other, nothing of one left in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from chiron.store import FencedError, RefusedError, UnavailableError
from chiron.store.etcd import EtcdStore, Leadership, Lease, RestoredError, SchemaError
from chiron.store.etcd.compaction import compact_regularly
from chiron.store.etcd.election import resign
from chiron.store.etcd.members import look
from services.global_controller.config import ControllerConfig
from services.global_controller.controller import Controller
from services.global_controller.seat import Seat
from services.global_controller.store_health import StoreState

_log = logging.getLogger(__name__)
_LOOK_S, _LOOK_IN_TROUBLE_S = 5.0, 1.0
"""Time between two looks at etcd's members. Nothing tells a client that a member it does not use has gone."""
_TROUBLE = (UnavailableError, RefusedError, SchemaError)


class Candidacy:
    """One process's part in the election."""

    def __init__(
        self, config: ControllerConfig, store: EtcdStore, seat: Seat, make: Callable[[], Controller]
    ) -> None:
        """Prepares; `run` campaigns.

        Args:
            config: the controller's.
            store: where the election is held and the state lies.
            seat: told who leads.
            make: makes the controller of a new reign.
        """
        self._config = config.store
        self._store = store
        self._seat = seat
        self._make = make
        self._left: Lease | None = None
        """One that has ended here, and perhaps not on the server."""

    async def run(self) -> None:
        """Campaigns and reigns until cancelled; then whoever is next leads at once.

        Raises RestoredError when what is known of etcd is not its past any more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_candidates())
                tasks.create_task(self._follow_members())
                tasks.create_task(self._campaign())
        except* RestoredError as group:
            raise group.exceptions[0] from None

    async def _campaign(self) -> None:
        connection = self._store.connection
        backoff = connection.backoff()
        while True:
            try:
                # It would keep its place before the new one: the election would wait until it has run out.
                if self._left is not None:
                    await self._left.end_there()
                lease = await Lease.grant(connection, self._config.lease_s)
            except _TROUBLE as error:
                self._seat.health.failed(error)
                await backoff.pause()
                continue
            self._seat.health.worked()
            leadership = None
            try:
                leadership = await self._store.electorate.campaign(lease, self._seat.address)
                await self._reign(leadership)
                backoff.reset()
            except _TROUBLE as error:
                self._seat.health.failed(error)
            except FencedError as error:
                _log.warning("%s", error)
            finally:
                await self._withdraw(lease, leadership)
            await backoff.pause()

    async def _reign(self, leadership: Leadership) -> None:
        """Returns when the leadership may have ended. Raises UnavailableError when it cannot begin."""
        self._store.leadership = leadership
        controller = self._make()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(leadership.lease.lost.wait())]
        try:
            await controller.start()
            tasks.append(asyncio.create_task(controller.run()))
            if self._config.history_s:
                keep = compact_regularly(self._store.connection, leadership.key.key, self._config.history_s)
                tasks.append(asyncio.create_task(keep))
            self._seat.take(controller)
            _log.info("leads, term %d", controller.term)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            _log.warning("the reign of term %d has ended: its lease may have", controller.term)
        except* FencedError as group:
            _log.warning("the reign of term %d has ended: %s", controller.term, group.exceptions[0])
        finally:
            # First nobody is served as by a leader any more, then everything that it knew is dropped.
            self._seat.leave()
            controller.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _withdraw(self, lease: Lease, leadership: Leadership | None) -> None:
        """Lets the next one lead at once, where etcd can be told."""
        try:
            if leadership is not None and leadership.held:
                await resign(self._store.connection, leadership, revoke=False)
        except _TROUBLE as error:
            _log.info("the leadership ends with its lease: %s", error)
        finally:
            self._left = lease
            await lease.revoke()

    async def _follow_candidates(self) -> None:
        backoff = self._store.connection.backoff()
        while True:
            try:
                async for candidates in self._store.electorate.follow():
                    backoff.reset()
                    if self._seat.controller is None:
                        self._seat.health.worked()
                    self._seat.stand([candidate.address for candidate in candidates])
            except (RefusedError, SchemaError) as error:
                self._seat.health.failed(error)
            await backoff.pause()

    async def _probe(self) -> None:
        try:
            await self._store.probe()
        except FencedError:
            return
        except _TROUBLE as error:
            self._seat.health.failed(error)
        else:
            self._seat.health.worked()

    async def _check_past(self) -> None:
        try:
            await self._store.past.check()
        except _TROUBLE as error:
            _log.info("etcd's past is not known at present: %s", error)

    async def _follow_members(self) -> None:
        while True:
            self._seat.health.look(await look(self._store.connection))
            if self._seat.health.doubtful and self._seat.controller is not None:
                await self._probe()
            if self._seat.health.state is not StoreState.UNAVAILABLE:
                await self._check_past()
            in_trouble = self._seat.health.state is not StoreState.OK
            await asyncio.sleep(_LOOK_IN_TROUBLE_S if in_trouble else _LOOK_S)
