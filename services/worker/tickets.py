"""Checks the tickets that requests come with: signature, instance, time, single use, what they allow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from chiron.auth.credentials import CallContext, has_role
from chiron.auth.keys import KeyRing
from chiron.auth.replay import ReplayMemoryFullError, UsedTickets
from chiron.auth.tickets import open_signed, open_unsigned
from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2

ROUTER = "router"
_log = logging.getLogger(__name__)


class TicketDesk:
    """One incarnation's keys, clock and memory of used tickets."""

    def __init__(
        self,
        instance_id: str,
        incarnation: int,
        *,
        required: bool,
        on_expired: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Holds no keys at first.

        Args:
            instance_id: tickets of another instance are refused.
            incarnation: likewise; it is also why used tickets need not be remembered over a restart.
            required: refuse requests without a ticket; else a ticket that is there is still checked.
            on_expired: called when a ticket came too late: routers should hear this worker's clock again.
            clock: monotonic time in seconds.
        """
        self._instance_id = instance_id
        self._incarnation = incarnation
        self._required = required
        self._on_expired = on_expired
        self._clock = clock
        self._began = clock()
        self._ring: KeyRing | None = None
        self._used = UsedTickets()

    @property
    def clock_ms(self) -> float:
        """This incarnation's clock, by which tickets expire, in milliseconds."""
        return (self._clock() - self._began) * 1e3

    def set_keys(self, ring: KeyRing) -> None:
        """Replaces the keys."""
        _log.info("holds %d ticket keys", len(ring.keys))
        self._ring = ring

    def check(self, request: pb.GenerateRequest, *, from_router: bool) -> worker_pb2.Ticket | None:
        """The request's ticket, used up from now on; None for a request that needs none.

        Args:
            request: what came.
            from_router: the caller has proved to be a router, so that no ticket is needed.

        Raises:
            ChironError: RETRY_ELSEWHERE for another instance's ticket, or while this worker has no keys;
                TICKET_* for every other ticket that does not fit.
        """
        if not request.ticket:
            if self._required and not from_router:
                self._need_keys()
                raise ChironError(
                    Reason.TICKET_REQUIRED,
                    "this worker takes requests with a router's ticket only: call Route first",
                )
            return None
        if self._ring is None:
            if self._required:
                self._need_keys()
            ticket, mac = open_unsigned(request.ticket), b""
        else:
            ticket, mac = open_signed(request.ticket, self._ring)
        self._check_instance(ticket)
        # One instant for both: a ticket that lapses in between would be in time, and forgotten as used.
        now_ms = self.clock_ms
        if mac:
            self._check_time(ticket, now_ms)
        check_scope(request, ticket)
        if mac:
            self._use(ticket, mac, now_ms)
        return ticket

    def _need_keys(self) -> None:
        if self._ring is None:
            raise ChironError(Reason.RETRY_ELSEWHERE, "this worker has no ticket keys yet")

    def _check_instance(self, ticket: worker_pb2.Ticket) -> None:
        if (ticket.instance_id, ticket.incarnation) != (self._instance_id, self._incarnation):
            raise ChironError(
                Reason.RETRY_ELSEWHERE,
                f"the ticket is for instance {ticket.instance_id} incarnation {ticket.incarnation}, "
                f"this is {self._instance_id} incarnation {self._incarnation}",
            )

    def _check_time(self, ticket: worker_pb2.Ticket, now_ms: float) -> None:
        late_ms = now_ms - ticket.expires_at_ms
        if late_ms > 0:
            self._on_expired()
            raise ChironError(Reason.TICKET_EXPIRED, f"the ticket expired {late_ms:.0f} ms ago")

    def _use(self, ticket: worker_pb2.Ticket, mac: bytes, now_ms: float) -> None:
        try:
            fresh = self._used.use(mac, ticket.expires_at_ms, now_ms)
        except ReplayMemoryFullError:
            text = "this worker remembers as many used tickets as it can"
            raise ChironError(Reason.RETRY_ELSEWHERE, text) from None
        if not fresh:
            raise ChironError(Reason.TICKET_USED, "the ticket was used before")


def from_router(context: CallContext) -> bool:
    """Whether the caller has shown a router's certificate: only where callers must have one is there any."""
    return has_role(context, ROUTER)


def check_scope(request: pb.GenerateRequest, ticket: worker_pb2.Ticket) -> None:
    """Raises ChironError (TICKET_MISMATCH) that names every field of the request that goes beyond its ticket.

    Priority and SLO are not compared: the ticket's are taken in their place.
    """
    wrong: list[tuple[str, str]] = []
    for field in ("request_id", "attempt", "model"):
        asked, allowed = getattr(request, field), getattr(ticket, field)
        if asked != allowed:
            wrong.append((field, f"is {asked!r}; the ticket is for {allowed!r}"))
    if request.request_class not in (ticket.request_class, types_pb2.REQUEST_CLASS_UNSPECIFIED):
        wrong.append(("request_class", "is not the ticket's"))
    sampling = request.sampling
    for field, asked, most in (
        ("sampling.max_tokens", sampling.max_tokens, ticket.max_tokens),
        ("sampling.min_tokens", sampling.min_tokens, ticket.max_tokens),
        ("sampling.n", sampling.n, ticket.max_choices),
    ):
        if most and asked > most:
            wrong.append((field, f"is {asked}; the ticket allows {most}"))
    if wrong:
        text = "; ".join(f"{field}: {what}" for field, what in wrong)
        raise ChironError(Reason.TICKET_MISMATCH, text, violations=wrong)


def check_prompt(prompt_tokens: int, ticket: worker_pb2.Ticket | None) -> None:
    """Raises ChironError (TICKET_MISMATCH) for a prompt longer than the ticket allows."""
    if ticket is not None and 0 < ticket.max_prompt_tokens < prompt_tokens:
        what = f"has {prompt_tokens} tokens; the ticket allows {ticket.max_prompt_tokens}"
        raise ChironError(Reason.TICKET_MISMATCH, f"prompt: {what}", violations=[("prompt", what)])
