"""Key rings: who accepts what before, during and after a rotation, and that secrets do not show."""

from __future__ import annotations

import pytest

from chiron.auth.keys import KeyRing, KeyRingError, TicketKey
from chiron.auth.tickets import open_signed, sign
from chiron.internal.v1 import auth_pb2, worker_pb2
from chiron.rpc.errors import ChironError, Reason

TICKET = worker_pb2.Ticket(request_id="r", instance_id="a", nonce=b"12345678")


def accepts(holder: KeyRing, signer: KeyRing) -> bool:
    try:
        return open_signed(sign(TICKET, signer), holder).ticket == TICKET
    except ChironError as error:
        return error.reason is not Reason.TICKET_KEY_UNKNOWN


def test_who_is_one_rotation_ahead_or_behind_is_understood() -> None:
    before = KeyRing.draw()
    after = before.rotated()
    assert accepts(before, after)
    assert accepts(after, before)


def test_a_key_is_dropped_one_period_after_it_last_signed() -> None:
    first = KeyRing.draw()
    third = first.rotated().rotated()
    assert not accepts(third, first)
    assert first.signing_key_id not in third.secrets
    assert len(third.keys) == 3


def test_a_rotation_signs_with_the_key_announced_before() -> None:
    ring = KeyRing.draw()
    assert ring.rotated().signing_key_id == ring.keys[-1].key_id != ring.signing_key_id


def test_keys_of_another_ring_are_accepted_until_the_next_rotation_and_never_signed_with() -> None:
    own, foreign = KeyRing.draw(), KeyRing.draw()
    both = own.accepting(foreign)
    assert accepts(both, foreign)
    assert both.signing_key_id == own.signing_key_id
    assert not accepts(both.rotated(), foreign)
    assert both.accepting(foreign) is both


def test_a_ring_stays_bounded_however_many_others_it_is_offered() -> None:
    ring = KeyRing.draw()
    for _ in range(50):
        ring = ring.accepting(KeyRing.draw())
    assert len(ring.keys) <= 8


def test_a_ring_survives_its_bytes() -> None:
    ring = KeyRing.draw().rotated()
    assert KeyRing.from_bytes(ring.to_bytes()) == ring


@pytest.mark.parametrize(
    "message",
    [
        auth_pb2.TicketKeys(),
        auth_pb2.TicketKeys(keys=[auth_pb2.TicketKey(key_id=1, secret=b"s" * 32)], signing_key_id=2),
        auth_pb2.TicketKeys(keys=[auth_pb2.TicketKey(key_id=1, secret=b"short")], signing_key_id=1),
        auth_pb2.TicketKeys(keys=[auth_pb2.TicketKey(key_id=1, secret=b"s" * 32)] * 2, signing_key_id=1),
    ],
    ids=["empty", "signing key missing", "short secret", "twice the same id"],
)
def test_keys_that_cannot_be_used_are_refused(message: auth_pb2.TicketKeys) -> None:
    with pytest.raises(KeyRingError):
        KeyRing.from_message(message)
    with pytest.raises(KeyRingError):
        KeyRing.from_bytes(message.SerializeToString())


def test_neither_repr_nor_an_error_shows_a_secret() -> None:
    key = TicketKey(5, b"S" * 32)
    ring = KeyRing((key,), 5)
    with pytest.raises(KeyRingError) as caught:
        KeyRing((key, key), 5)
    for text in (repr(ring), str(ring), repr(key), str(caught.value)):
        assert "SSS" not in text
