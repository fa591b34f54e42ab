"""What a run prints."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Report:
    """The columns, in their order."""

    seed: int
    store: str
    routers: int
    items: int
    results: int = 0
    """Recorded, as the queue counts them."""
    succeeded: int = 0
    lost: int = 0
    """Items without a result."""
    duplicated: int = 0
    """Items with two, or a number given twice."""
    failed: int = 0
    """Items whose result is an error: none is to be blamed on the item here."""
    wrong: int = 0
    """Items whose answer is not that of an undisturbed run."""
    miscounted: int = 0
    """Batches whose counts do not add up."""
    repeated: int = 0
    """Items that were begun more than once."""
    faults: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def status(self) -> int:
        """1 when an error column is not 0."""
        return int(any((self.lost, self.duplicated, self.failed, self.wrong, self.miscounted)))

    def count(self, kinds: Counter[str]) -> None:
        """Takes over the faults."""
        self.faults, self.kinds = kinds.total(), dict(sorted(kinds.items()))
