"""The terms of controllers that this node has seen: an older one is refused, a new one binds once on disk."""

from __future__ import annotations

from services.local_agent.journal import Journal, JournalError
from services.local_agent.memory import TermSeen


class StaleTerm(Exception):
    """A message of a controller that has been superseded; the text names both terms."""


class Terms:
    """The highest term, and whether it would be remembered."""

    def __init__(self, journal: Journal) -> None:
        """Begins with what the journal tells."""
        self._journal = journal
        self.highest = self._on_disk = journal.memory.term
        """The highest term ever seen here."""

    @property
    def on_disk(self) -> bool:
        """Whether the highest term may be acted on: a successor of this agent would know it."""
        return self._on_disk >= self.highest

    async def accept(self, term: int) -> bool:
        """Refuses what is older from now on; returns whether the term is new.

        A term that the disk does not take stays off it, see `on_disk`; the next call tries again. Raises
        StaleTerm for a lower term.
        """
        if term < self.highest:
            raise StaleTerm(f"term {term} is over: this node has seen term {self.highest}")
        new = term > self.highest
        self.highest = term
        if not self.on_disk:
            try:
                await self._journal.write(TermSeen(term))
            except JournalError:
                return new
            self._on_disk = max(term, self._on_disk)
        return new
