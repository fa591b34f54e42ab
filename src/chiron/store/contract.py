"""The contract that every store of cluster state fulfils; tests/conformance/store_suite.py checks it."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from chiron.store.decisions import DecisionRecord, Outcome
from chiron.store.records import Change, Key, Record, Snapshot


class ConflictError(Exception):
    """A record is not at the revision that the transaction expected; nothing was written.

    Attributes:
        keys: the records that differ.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__("changed meanwhile: " + ", ".join(f"{kind} {name}" for kind, name in keys))
        self.keys = tuple(keys)


class FencedError(Exception):
    """Someone else has acquired a newer term; this writer must stop. Nothing was written."""


class CompactedError(Exception):
    """The history that a watch asked for is gone; read the state again and watch from its revision."""


class UnavailableError(Exception):
    """The store cannot be reached, or takes no writes, at present; the text says why.

    Attributes:
        uncertain: the call was a write, and whether it has happened is not known. Read the state before
            writing again.
    """

    def __init__(self, text: str, *, uncertain: bool = False) -> None:
        super().__init__(text)
        self.uncertain = uncertain


class RefusedError(Exception):
    """The store refuses this client for good: who it is, what it may do, or what it sent."""


class TooLargeError(ValueError):
    """A transaction is beyond what the store takes at once; the text names the limit. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A set of writes that happen together or not at all."""

    term: int
    """The writer's term."""
    puts: tuple[Record, ...] = ()
    deletes: tuple[Key, ...] = ()
    expect: Mapping[Key, int] = field(default_factory=dict)
    """Revision that each of these records must have; 0: it must not exist."""
    decisions: tuple[DecisionRecord, ...] = ()
    """Their outcomes are stored with them."""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """Decision id → what has come of it so far; takes the place of what was stored before."""


class Store(abc.ABC):
    """Models, nodes, instances and a bounded log of decisions, at increasing revisions.

    Values that a store returns MUST be unaffected by later writes, and nothing that a caller does to a value
    it was given or has handed in MAY change what is stored.
    """

    @abc.abstractmethod
    async def acquire_term(self) -> int:
        """Makes the caller the only writer and returns its term.

        The term MUST be greater than every term returned before, also by earlier processes where agents can
        have seen those. Commits of older terms MUST fail from then on.
        """

    @abc.abstractmethod
    async def read(self) -> Snapshot:
        """The whole state at one revision.

        It MUST hold every commit that has returned, and never a part of a transaction.
        """

    @abc.abstractmethod
    async def commit(self, transaction: Transaction) -> int:
        """Applies the transaction atomically and returns the revision of its result.

        - MUST raise FencedError when the term is not the newest acquired one, before all other checks.
        - MUST raise ConflictError naming every record whose revision is not the expected one.
        - MUST raise ValueError when a key is written twice in one transaction.
        - When an error is raised, nothing of the transaction, its decisions included, MAY be stored; the one
          exception is an UnavailableError that says `uncertain`.
        - MAY raise TooLargeError, UnavailableError and RefusedError; so MAY every other method.
        - MUST raise the revision by exactly one when it puts a record (an equal one too) or deletes one that
          exists, and every record put MUST then have that revision.
        - A transaction that changes no record MUST leave the revision alone; its decisions and outcomes are
          stored.
        - The outcome of a decision that is not kept MUST be ignored.
        - Deleting a record that does not exist MUST do nothing.
        """

    @abc.abstractmethod
    def watch(self, after: int) -> AsyncIterator[Change]:
        """Yields each change whose revision is greater than `after`: in order, no gap, no repetition.

        It waits for new ones and MUST end when the store is closed. It MUST raise CompactedError when one
        that it owes is no longer kept, however late the consumer comes for it, and ValueError when `after` is
        greater than the present revision. What a slow consumer costs in memory MUST be bounded.
        """

    @abc.abstractmethod
    async def decisions(self, *, limit: int, model: str = "") -> Sequence[DecisionRecord]:
        """The newest decisions first, at most `limit` of those kept; of one model where `model` is given.

        Each MUST have the outcome that was stored last. The log MUST be bounded, and the oldest MUST be the
        ones dropped, with their outcomes.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends every watch. May be called twice."""
