"""What the journal says of the worker that an instance has now."""

from __future__ import annotations

from dataclasses import replace

from services.local_agent.journal import Journal
from services.local_agent.memory import WorkerNoted


class WorkerRecord:
    """Follows one worker from its start to its end."""

    def __init__(self, noted: WorkerNoted, journal: Journal) -> None:
        """`noted` is on record."""
        self._noted = noted
        self._journal = journal
        self._asleep: bool | None = noted.asleep
        """What is on disk; None: either."""

    def note_address(self, address: str) -> None:
        """It serves: a successor of this agent can say so at once."""
        if not self._noted.address:
            self._noted = replace(self._noted, address=address)
            self._journal.note(self._noted)

    async def write_asleep(self, asleep: bool) -> None:
        """Returns once it is on disk whether others may own the worker's GPUs. Raises JournalError.

        What could not be written may be on disk later all the same, so that it is written again in any case.
        """
        if self._asleep is asleep:
            return
        self._asleep = None
        self._noted = replace(self._noted, asleep=asleep)
        await self._journal.write(self._noted)
        self._asleep = asleep
