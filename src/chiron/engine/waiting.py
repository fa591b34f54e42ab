"""The waiting queue: (priority, arrival), lower first."""

from heapq import heapify, heappop, heappush

from chiron.engine.request import RequestPhase
from chiron.engine.sequence import Sequence

COMPACT_FROM = 64
_WAITING = RequestPhase.WAITING
"""Without the look-up in the enumeration, as head() is asked before most steps."""


class WaitingQueue:
    """A heap in which a sequence that ends while waiting is skipped later; O(log n) per change."""

    __slots__ = ("_heap", "size")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        # Sequences that wait, those to be skipped not counted.
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence at the place that its key gives it."""
        self.size += 1
        heappush(self._heap, (sequence.key, sequence))

    def head(self) -> Sequence | None:
        """Return the most urgent sequence, which stays queued, or None."""
        heap = self._heap
        while heap:
            sequence = heap[0][1]
            if sequence.phase is _WAITING:
                return sequence
            heappop(heap)
        return None

    def pop(self) -> Sequence:
        """Remove the sequence that head() has just returned."""
        self.size -= 1
        return heappop(self._heap)[1]

    def discard(self, sequence: Sequence) -> None:
        """Note that a queued sequence has ended; its phase must say so already."""
        self.size -= 1
        stale = len(self._heap) - self.size
        if stale >= COMPACT_FROM and stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1].phase is RequestPhase.WAITING]
            heapify(self._heap)

    def in_order(self) -> list[Sequence]:
        """Return the waiting sequences, most urgent first; O(n log n), for inspection."""
        return [entry[1] for entry in sorted(self._heap) if entry[1].phase is RequestPhase.WAITING]
