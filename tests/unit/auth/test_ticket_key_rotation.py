"""Rotating the ticket keys through a store that does not take every write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from chiron.auth.keys import KeyRing
from chiron.store import ConflictError, RefusedError, Snapshot, TicketKeysRecord, UnavailableError
from services.global_controller import ticket_keys
from services.global_controller.controller import Controller
from services.global_controller.ticket_keys import TicketKeyKeeper


class Reign:
    """As much of a controller as the keeper uses; its store fails as told, then works."""

    def __init__(self, failures: list[Exception]) -> None:
        self.settled = asyncio.Event()
        self.settled.set()
        self.snapshot = replace(Snapshot(), ticket_keys=TicketKeysRecord(KeyRing.draw().to_bytes(), 0))
        self.registry = SimpleNamespace(wake_all=lambda: None)
        self.rotated = asyncio.Event()
        self._failures = failures

    async def put(self, build: Callable[[Snapshot], TicketKeysRecord | None]) -> None:
        if self._failures:
            raise self._failures.pop(0)
        record = build(self.snapshot)
        assert record is not None
        self.snapshot = replace(self.snapshot, ticket_keys=record)
        self.rotated.set()


@pytest.mark.parametrize(
    "failure",
    [UnavailableError("away"), RefusedError("etcd: no space"), ConflictError([])],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_rotation_that_the_store_does_not_take_is_made_later(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticket_keys, "_AFTER_FAILURE_S", 0.0)
    reign = Reign([failure, failure])
    signing = KeyRing.from_bytes(reign.snapshot.ticket_keys.ring).signing_key_id
    keeper = TicketKeyKeeper(cast(Controller, reign), 3600.0, clock_ms=lambda: 3_600_001)
    running = asyncio.create_task(keeper.run())

    done, _ = await asyncio.wait(
        {running, asyncio.create_task(reign.rotated.wait())}, return_when=asyncio.FIRST_COMPLETED, timeout=20
    )

    assert done
    assert not running.done(), running
    running.cancel()
    record = reign.snapshot.ticket_keys
    assert KeyRing.from_bytes(record.ring).signing_key_id != signing
    assert record.rotated_unix_ms == 3_600_001
