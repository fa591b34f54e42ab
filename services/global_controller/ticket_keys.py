"""The keys of tickets: made once, rotated on time, handed to every agent and router."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chiron.auth.keys import KeyRing, KeyRingError
from chiron.internal.v1 import auth_pb2
from chiron.store import ConflictError, RefusedError, Snapshot, TicketKeysRecord, UnavailableError

if TYPE_CHECKING:
    from services.global_controller.controller import Controller

_log = logging.getLogger(__name__)
_AFTER_FAILURE_S = 5.0


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class TicketKeyKeeper:
    """Keeps the keys of the cluster. What it hands out is durable: it comes from the store alone."""

    def __init__(
        self, controller: Controller, period_s: float, *, clock_ms: Callable[[], int] = _wall_clock_ms
    ) -> None:
        """Makes no key yet.

        Args:
            controller: who writes.
            period_s: how long one key signs, in seconds.
            clock_ms: wall clock in milliseconds. Keys are kept by it, so that a period outlives a controller.
        """
        self._controller = controller
        self._period_s = period_s
        self._clock_ms = clock_ms
        self._own = False
        """True once this controller found none and made the keys itself."""
        self._made = asyncio.Event()

    @property
    def message(self) -> auth_pb2.TicketKeys:
        """The present keys as they travel; empty before the first agent or router has come."""
        record = self._controller.snapshot.ticket_keys
        return auth_pb2.TicketKeys.FromString(record.ring) if record is not None else auth_pb2.TicketKeys()

    async def welcome(self, held: auth_pb2.TicketKeys) -> None:
        """An agent or router joins that holds these keys; afterwards `message` has what it is to hold.

        A controller whose store kept no keys goes on with those of whoever comes first, and accepts those
        that come later: workers and routers that outlived its predecessor still understand each other.
        """
        offered = _usable(held)

        def build(snapshot: Snapshot) -> TicketKeysRecord | None:
            record = snapshot.ticket_keys
            if record is None:
                ring = offered or KeyRing.draw()
                _log.info("ticket keys: %s", "taken over" if offered else "made")
                self._own = True
            elif self._own and offered is not None:
                present = KeyRing.from_bytes(record.ring)
                ring = present.accepting(offered)
                if ring is present:
                    return None
                _log.info("ticket keys: accepting those of an earlier controller too")
            else:
                return None
            rotated = record.rotated_unix_ms if record is not None else self._clock_ms()
            return TicketKeysRecord(ring.to_bytes(), rotated)

        await self._write(build)
        self._made.set()

    async def run(self) -> None:
        """Rotates the keys whenever a period is over; runs until cancelled."""
        # Agents and routers that have not come back yet must not miss two rotations.
        await self._controller.settled.wait()
        if self._controller.snapshot.ticket_keys is None:
            await self._made.wait()
        while True:
            await asyncio.sleep(self._due_in_s())
            try:
                await self._write(self._rotation)
            except (UnavailableError, RefusedError, ConflictError) as error:
                # Old keys serve; a late rotation harms nobody.
                _log.warning("ticket keys are not rotated: %s", error)
                await asyncio.sleep(_AFTER_FAILURE_S)

    def _rotation(self, snapshot: Snapshot) -> TicketKeysRecord | None:
        record = snapshot.ticket_keys
        if record is None or self._due_in_s() > 0:
            return None
        _log.info("ticket keys: rotated")
        ring = KeyRing.from_bytes(record.ring).rotated()
        return TicketKeysRecord(ring.to_bytes(), self._clock_ms())

    def _due_in_s(self) -> float:
        """Seconds to the next rotation; never more than a period, wherever the wall clock has jumped."""
        record = self._controller.snapshot.ticket_keys
        rotated_ms = record.rotated_unix_ms if record is not None else self._clock_ms()
        return min(self._period_s, max(0.0, self._period_s - (self._clock_ms() - rotated_ms) / 1e3))

    async def _write(self, build: Callable[[Snapshot], TicketKeysRecord | None]) -> None:
        before = self._controller.snapshot.ticket_keys
        await self._controller.put(build)
        if self._controller.snapshot.ticket_keys != before:
            self._controller.registry.wake_all()


def _usable(held: auth_pb2.TicketKeys) -> KeyRing | None:
    if not held.keys:
        return None
    try:
        return KeyRing.from_message(held)
    except KeyRingError as error:
        _log.warning("an agent or router offered ticket keys that cannot be used: %s", error)
        return None
