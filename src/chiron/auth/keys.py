"""The keys that tickets are signed with, and how they are rotated. Pure, but for the drawing of secrets."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from google.protobuf.message import DecodeError

from chiron.internal.v1 import auth_pb2

_SECRET_BYTES = 32
_MOST_KEYS = 8
"""Keys accepted at once; the oldest go first."""


class KeyRingError(ValueError):
    """Bytes or a message that hold no usable keys; the text never shows a secret."""


@dataclass(frozen=True, slots=True)
class TicketKey:
    """One secret and its name."""

    key_id: int
    secret: bytes = field(repr=False)

    @classmethod
    def draw(cls) -> TicketKey:
        """A new random key."""
        return cls(secrets.randbits(63) or 1, secrets.token_bytes(_SECRET_BYTES))


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are accepted now, the oldest first, and the one to sign with.

    The key after the signing one is known to everybody a whole period before anybody signs with it, and the
    one before it is accepted for a period longer: whoever hears of a rotation a little earlier or later than
    its partner refuses nothing.
    """

    keys: tuple[TicketKey, ...]
    signing_key_id: int
    secrets: Mapping[int, bytes] = field(init=False, repr=False, compare=False)
    """Secret by key id."""

    def __post_init__(self) -> None:
        """Raises KeyRingError for a ring that cannot sign."""
        found = {key.key_id: key.secret for key in self.keys}
        if self.signing_key_id not in found or len(found) != len(self.keys):
            raise KeyRingError("the signing key is missing, or a key is there twice")
        if any(len(key.secret) < _SECRET_BYTES or not key.key_id for key in self.keys):
            raise KeyRingError(f"a key must have an id and at least {_SECRET_BYTES} bytes")
        object.__setattr__(self, "secrets", MappingProxyType(found))

    @classmethod
    def draw(cls) -> KeyRing:
        """A new ring: the key to sign with, and the next one."""
        current = TicketKey.draw()
        return cls((current, TicketKey.draw()), current.key_id)

    @property
    def signing_secret(self) -> bytes:
        """The secret to sign with."""
        return self.secrets[self.signing_key_id]

    def rotated(self) -> KeyRing:
        """One period later: the next key signs, the present one is still accepted, all before it are not."""
        present = next(at for at, key in enumerate(self.keys) if key.key_id == self.signing_key_id)
        following = self.keys[present + 1 :] or (TicketKey.draw(),)
        return KeyRing((self.keys[present], *following, TicketKey.draw()), following[0].key_id)

    def accepting(self, other: KeyRing) -> KeyRing:
        """This ring, taking the other's keys too until the next rotation; itself when it has them all."""
        foreign = tuple(key for key in other.keys if key.key_id not in self.secrets)
        if not foreign:
            return self
        room = max(0, _MOST_KEYS - len(self.keys))
        return KeyRing((*foreign[-room:], *self.keys), self.signing_key_id) if room else self

    def to_message(self) -> auth_pb2.TicketKeys:
        """The ring as it travels."""
        keys = [auth_pb2.TicketKey(key_id=key.key_id, secret=key.secret) for key in self.keys]
        return auth_pb2.TicketKeys(keys=keys, signing_key_id=self.signing_key_id)

    @classmethod
    def from_message(cls, message: auth_pb2.TicketKeys) -> KeyRing:
        """The inverse. Raises KeyRingError."""
        keys = tuple(TicketKey(key.key_id, key.secret) for key in message.keys)
        return cls(keys, message.signing_key_id)

    def to_bytes(self) -> bytes:
        """The ring for a file or a store. It is secret: a file needs mode 0600."""
        return self.to_message().SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyRing:
        """The inverse. Raises KeyRingError."""
        try:
            return cls.from_message(auth_pb2.TicketKeys.FromString(data))
        except DecodeError:
            raise KeyRingError("these bytes hold no keys") from None
