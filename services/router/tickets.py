"""The tickets that this router issues: each for one attempt at one worker, short-lived by its clock."""

from __future__ import annotations

import logging
import os

from chiron.auth.clock import PeerClock
from chiron.auth.keys import KeyRing
from chiron.auth.tickets import sign
from chiron.internal.v1 import worker_pb2
from chiron.v1 import types_pb2
from services.router.request import PendingRequest, Placement

_log = logging.getLogger(__name__)
_NONCE_BYTES = 8


class Tickets:
    """Holds the keys and knows the workers' clocks. Times are monotonic seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_ms = ttl_s * 1e3
        self.ring: KeyRing | None = None
        """The keys as the controller last sent them; None: tickets go out unsigned, and only open workers
        take them."""
        self._clocks: dict[str, tuple[int, PeerClock]] = {}
        """Instance id → incarnation, its clock."""

    def set_keys(self, ring: KeyRing) -> None:
        """Replaces the keys."""
        _log.info("holds %d ticket keys", len(ring.keys))
        self.ring = ring

    def heard(self, load: worker_pb2.WatchLoadResponse, now: float) -> None:
        """A worker told its load, and the time on its clock."""
        known = self._clocks.get(load.instance_id)
        if known is None or known[0] != load.incarnation:
            known = self._clocks[load.instance_id] = (load.incarnation, PeerClock())
        known[1].heard(load.clock_ms / 1e3, now)

    def forget(self, instance_id: str) -> None:
        """The instance is no longer watched."""
        self._clocks.pop(instance_id, None)

    def issue(
        self,
        request: PendingRequest,
        placement: Placement,
        *,
        attempt: int,
        slo: types_pb2.Slo,
        elapsed_ms: float,
        now: float,
    ) -> bytes:
        """A signed ticket for one attempt at the instance that it was placed on."""
        _, clock = self._clocks.get(placement.instance_id, (0, None))
        worker_now = clock.at(now) if clock is not None else None
        ticket = worker_pb2.Ticket(
            request_id=request.request_id,
            attempt=attempt,
            instance_id=placement.instance_id,
            incarnation=placement.incarnation,
            model=request.model,
            request_class=int(request.request_class),  # type: ignore[arg-type]
            priority=request.priority,
            slo=slo,
            max_prompt_tokens=request.max_prompt_tokens,
            max_tokens=request.max_tokens,
            max_choices=request.choices,
            deadline_in_s=request.deadline - now if request.deadline is not None else None,
            elapsed_ms=elapsed_ms,
            tenant=request.tenant,
            # Without a reading the worker refuses it as expired, and its next report brings one.
            expires_at_ms=(worker_now or 0.0) * 1e3 + self._ttl_ms,
            nonce=os.urandom(_NONCE_BYTES),
        )
        return sign(ticket, self.ring)
