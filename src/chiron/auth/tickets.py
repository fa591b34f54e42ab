"""Signs tickets and opens signed ones."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from google.protobuf.message import DecodeError

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import auth_pb2, worker_pb2
from chiron.rpc.errors import ChironError, Reason

_PREFIX = b"chiron ticket 1\0"
"""Keeps a signature from meaning anything where the same key signs something else."""


class Opened(NamedTuple):
    """A ticket, and the signature that makes it this one."""

    ticket: worker_pb2.Ticket
    mac: bytes


def sign(ticket: worker_pb2.Ticket, ring: KeyRing | None) -> bytes:
    """The serialised SignedTicket; without a ring it has no signature, and only an open worker takes it."""
    body = ticket.SerializeToString()
    signed = auth_pb2.SignedTicket(ticket=body)
    if ring is not None:
        signed.key_id = ring.signing_key_id
        signed.mac = hmac.digest(ring.signing_secret, _PREFIX + body, "sha256")
    return signed.SerializeToString()


def open_signed(wire: bytes, ring: KeyRing) -> Opened:
    """Opens a ticket. Raises ChironError: TICKET_INVALID, TICKET_KEY_UNKNOWN.

    Nothing of the ticket itself is looked at before its signature holds.
    """
    signed = _read(wire)
    if not signed.mac:
        raise ChironError(Reason.TICKET_INVALID, "the ticket is not signed")
    secret = ring.secrets.get(signed.key_id)
    if secret is None:
        raise ChironError(
            Reason.TICKET_KEY_UNKNOWN,
            "the ticket is signed with a key that this worker does not hold (any more)",
        )
    if not hmac.compare_digest(hmac.digest(secret, _PREFIX + signed.ticket, "sha256"), signed.mac):
        raise ChironError(Reason.TICKET_INVALID, "the ticket's signature does not fit it")
    return Opened(_ticket(signed), signed.mac)


def open_unsigned(wire: bytes) -> worker_pb2.Ticket:
    """The ticket, whoever made it. Raises ChironError (TICKET_INVALID) when it cannot be read."""
    return _ticket(_read(wire))


def _read(wire: bytes) -> auth_pb2.SignedTicket:
    try:
        return auth_pb2.SignedTicket.FromString(wire)
    except DecodeError:
        raise ChironError(Reason.TICKET_INVALID, "the ticket cannot be read") from None


def _ticket(signed: auth_pb2.SignedTicket) -> worker_pb2.Ticket:
    try:
        return worker_pb2.Ticket.FromString(signed.ticket)
    except DecodeError:
        raise ChironError(Reason.TICKET_INVALID, "the ticket cannot be read") from None
