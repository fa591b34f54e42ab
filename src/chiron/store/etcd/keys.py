"""Which keys of etcd a cluster's state lies under; several clusters share one etcd by different prefixes."""

from __future__ import annotations

from chiron.store.records import Key, Kind

_SEQUENCE_DIGITS = 16
_OUTCOMES = b"+"


def range_end(prefix: bytes) -> bytes:
    """The first key past all those that start with `prefix`, which does not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Keys:
    """The layout below one prefix.

    `state/` holds the head and every record, so that one range reads a snapshot and one watch follows it.
    """

    def __init__(self, prefix: str) -> None:
        """Raises ValueError when the prefix is empty or ends in a slash. None may lie below another's."""
        if not prefix or prefix.endswith("/"):
            raise ValueError(f"prefix: must be a name that does not end in '/', not {prefix!r}")
        base = prefix.encode() + b"/"
        self.term = base + b"term"
        self.election = base + b"election"
        self.probe = base + b"probe"
        self.state = base + b"state/"
        self.head = self.state + b"head"
        self._decisions = base + b"decisions/"

    def record(self, key: Key) -> bytes:
        """Where a record lies."""
        kind, name = key
        return b"%s%s/%s" % (self.state, kind.value.encode(), name.encode())

    def parse(self, key: bytes) -> Key:
        """The inverse of `record`. Raises ValueError for another key."""
        kind, slash, name = key.removeprefix(self.state).decode().partition("/")
        if not slash or not key.startswith(self.state):
            raise ValueError(f"no record's key: {key!r}")
        return Kind(kind), name

    def decisions(self, last: int) -> bytes:
        """Where the decisions of one transaction lie, the last of which is number `last`."""
        return self._decisions + b"%0*x" % (_SEQUENCE_DIGITS, last)

    def outcomes(self, last: int) -> bytes:
        """Where what came of those decisions lies: directly behind them, so that it goes when they go."""
        return self.decisions(last) + _OUTCOMES

    def logged_at(self, key: bytes) -> tuple[int, bool]:
        """Number of the last decision of the transaction that a key of the log belongs to, and whether its
        outcomes lie there."""
        number = key.removeprefix(self._decisions)
        return int(number.removesuffix(_OUTCOMES), 16), number.endswith(_OUTCOMES)

    @property
    def decisions_end(self) -> bytes:
        """The first key past all decisions."""
        return range_end(self._decisions)
