"""Which routers and workers this client could not reach lately. Pure: the caller tells the time."""

from __future__ import annotations

from collections.abc import Sequence

_SEVERAL = 2
"""Distinct workers that must fail, with no success between, before the whole network counts as closed."""
_REMEMBERED = 4096
"""Most addresses and hosts kept, so that a fleet that changes for months cannot fill the memory."""


def host_of(address: str) -> str:
    """The host part of `host:port` or `[v6]:port`."""
    return address.rpartition(":")[0].strip("[]") or address


class WorkerReachability:
    """Remembers workers that did not answer, so that later requests go through the router at once.

    A worker that times out makes its address count as unreachable, and its host too unless another worker of
    that host has answered. When several workers in a row fail, lookaside as a whole rests. A refused
    connection proves that the host is there, so it counts for the last rule alone.
    """

    def __init__(self, memory_s: float) -> None:
        """Remembers for `memory_s` seconds of the caller's clock."""
        self._memory_s = memory_s
        self._addresses: dict[str, float] = {}
        self._hosts: dict[str, float] = {}
        self._answered: dict[str, None] = {}
        self._in_a_row: set[str] = set()
        self._all_until = float("-inf")

    def lookaside_rests(self, now: float) -> bool:
        """True while no worker is worth a try."""
        return now < self._all_until

    def avoided(self, address: str, now: float) -> bool:
        """True while this worker is not worth a try."""
        return max(
            self._addresses.get(address, float("-inf")), self._hosts.get(host_of(address), float("-inf"))
        ) > now or self.lookaside_rests(now)

    def answered(self, address: str) -> None:
        """A connection to the worker came about."""
        host = host_of(address)
        self._addresses.pop(address, None)
        self._hosts.pop(host, None)
        self._answered[host] = None
        _bound(self._answered)
        self._in_a_row.clear()

    def refused(self, address: str, now: float) -> None:
        """The worker's host answered, but the worker did not listen there."""
        self._count(address, now)

    def timed_out(self, address: str, now: float) -> None:
        """Nothing answered in time."""
        self._addresses[address] = now + self._memory_s
        _bound(self._addresses)
        host = host_of(address)
        if host not in self._answered:
            self._hosts[host] = now + self._memory_s
            _bound(self._hosts)
        self._count(address, now)

    def _count(self, address: str, now: float) -> None:
        self._in_a_row.add(address)
        if len(self._in_a_row) >= _SEVERAL:
            self._in_a_row.clear()
            self._all_until = now + self._memory_s


class RouterOrder:
    """The order in which routers are tried: as given, those that failed lately last."""

    def __init__(self, addresses: Sequence[str], avoid_s: float) -> None:
        """Puts a failed router last for `avoid_s` seconds of the caller's clock."""
        self._addresses = tuple(addresses)
        self._avoid_s = avoid_s
        self._until: dict[str, float] = {}
        self.ever_answered = False
        """Whether any of them has ever been reached."""

    def order(self, now: float) -> list[str]:
        """Every router, the most promising first; among avoided ones, the longest avoided first."""
        return sorted(
            self._addresses,
            key=lambda address: until if (until := self._until.get(address, now)) > now else now,
        )

    def failed(self, address: str, now: float) -> None:
        """The router could not be reached, broke a call or sent a request elsewhere."""
        self._until[address] = now + self._avoid_s

    def answered(self, address: str) -> None:
        """The router works."""
        self.ever_answered = True
        self._until.pop(address, None)


def _bound(memory: dict[str, float] | dict[str, None]) -> None:
    while len(memory) > _REMEMBERED:
        memory.pop(next(iter(memory)))
