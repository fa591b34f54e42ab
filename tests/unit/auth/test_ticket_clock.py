"""A peer's clock from late readings, and the memory of used tickets."""

from __future__ import annotations

import random

import pytest

from chiron.auth.clock import PeerClock
from chiron.auth.keys import KeyRing
from chiron.auth.replay import ReplayMemoryFullError, UsedTickets
from chiron.auth.tickets import sign
from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from services.worker.tickets import TicketDesk


def test_nothing_is_known_before_the_first_reading() -> None:
    assert PeerClock().at(5.0) is None


def test_the_estimate_is_never_ahead_and_as_late_as_the_quickest_message() -> None:
    rng = random.Random(7)
    clock, ahead = PeerClock(), 1000.0
    delays = [rng.uniform(0.001, 3.0) for _ in range(50)]
    for sent, delay in enumerate(delays):
        clock.heard(sent * 0.5 + ahead, sent * 0.5 + delay)
    estimate = clock.at(40.0)
    assert estimate is not None
    assert 0 <= (40.0 + ahead) - estimate == pytest.approx(min(delays))


def test_a_clock_that_stood_still_is_believed_again() -> None:
    clock = PeerClock()
    for now in range(100):
        clock.heard(now + 50.0, float(now))
    for now in range(100, 400):
        # The peer was suspended for 20 s.
        clock.heard(now + 30.0, float(now))
    assert clock.at(400.0) == 430.0


def test_one_late_message_after_a_long_silence_moves_nothing() -> None:
    clock = PeerClock()
    clock.heard(100.0, 0.0)
    clock.heard(1000.0, 1000.0 - 100.0 + 5.0)
    assert clock.at(1000.0) == 1100.0


def test_a_ticket_counts_once_until_it_has_expired() -> None:
    used = UsedTickets()
    assert used.use(b"a", expires_at=10.0, now=8.0)
    assert not used.use(b"a", expires_at=10.0, now=10.0)
    assert used.use(b"b", expires_at=20.0, now=10.1)
    assert len(used) == 1, "what has expired need not be remembered"


def test_a_full_memory_refuses_rather_than_forgets() -> None:
    used = UsedTickets(most=2)
    assert used.use(b"a", 10.0, 0.0)
    assert used.use(b"b", 10.0, 0.0)
    with pytest.raises(ReplayMemoryFullError):
        used.use(b"c", 10.0, 0.0)
    assert not used.use(b"a", 10.0, 0.0)
    assert used.use(b"c", 30.0, 11.0)


def test_a_ticket_that_lapses_while_it_is_checked_counts_once_all_the_same() -> None:
    ring = KeyRing.draw()
    now = iter([0.0, 1.0, *(2.0 + microseconds * 1e-6 for microseconds in range(100))])
    desk = TicketDesk("i", 1, required=True, on_expired=lambda: None, clock=lambda: next(now))
    desk.set_keys(ring)
    ticket = worker_pb2.Ticket(request_id="r", model="m", instance_id="i", incarnation=1, expires_at_ms=2000)
    request = pb.GenerateRequest(request_id="r", model="m", ticket=sign(ticket, ring))
    assert desk.check(request, from_router=False) is not None
    with pytest.raises(ChironError) as caught:
        desk.check(request, from_router=False)
    assert caught.value.reason is Reason.TICKET_USED
