"""Queue disciplines: who of those that wait goes next. Each bounds starvation.

`fcfs` and `edf` are classical; `mlfq` demotes by attained service against head-of-line blocking
(reconstructed for token service; arXiv 2501.08090 uses first come first served within a request group). The
bound is the same for all: whoever has waited `starvation_s` goes before everybody who has not, oldest first.
So a request that has waited that long is passed only by requests that arrived before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request that waits."""

    request_id: Hashable
    arrived_s: float
    """When it first arrived, in seconds on the queue's clock; kept across preemptions."""
    deadline_s: float
    """Interactive: arrival + TTFT SLO; batch: its deadline; inf: none. Same clock."""
    attained_tokens: int = 0
    """Output tokens that it has been given so far."""
    place: int = 0
    """Orders those that arrived at the same instant. Of equal ones, the first to be pushed is first."""


_Entry = tuple[float, float, int, int, Waiting]
"""By rank or arrival, arrival, place, and the number of the push."""


class Discipline(Protocol):
    """One queue. Times never go back; every operation is O(log n), amortised."""

    def push(self, request: Waiting) -> None:
        """Enqueue; ValueError if its id waits already."""
        ...

    def peek(self, now_s: float) -> Waiting | None:
        """Who goes next at `now_s`; None: nobody waits."""
        ...

    def pop(self, now_s: float) -> Waiting | None:
        """Take out who goes next."""
        ...

    def remove(self, request_id: Hashable) -> None:
        """Take a request out, whatever its place. Raises KeyError if it does not wait."""
        ...

    def __len__(self) -> int:
        """Requests that wait."""
        ...


class _Ordered:
    """A queue in the order of a key, with the starvation bound; a heap by key beside a heap by arrival."""

    def __init__(self, starvation_s: float, rank: Callable[[Waiting], float]) -> None:
        if not starvation_s > 0:
            raise ValueError(f"starvation_s must be positive, got {starvation_s}")
        self._starvation_s = starvation_s
        self._rank = rank
        self._live: dict[Hashable, int] = {}
        self._by_rank: list[_Entry] = []
        self._by_arrival: list[_Entry] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._live)

    def push(self, request: Waiting) -> None:
        """See `Discipline.push`."""
        if request.request_id in self._live:
            raise ValueError(f"request {request.request_id!r} waits already")
        self._pushed += 1
        self._live[request.request_id] = self._pushed
        arrived = request.arrived_s
        heapq.heappush(self._by_rank, (self._rank(request), arrived, request.place, self._pushed, request))
        heapq.heappush(self._by_arrival, (arrived, arrived, request.place, self._pushed, request))

    def peek(self, now_s: float) -> Waiting | None:
        """See `Discipline.peek`."""
        if not self._live:
            return None
        oldest = self._head(self._by_arrival)
        return oldest if now_s - oldest.arrived_s >= self._starvation_s else self._head(self._by_rank)

    def pop(self, now_s: float) -> Waiting | None:
        """See `Discipline.pop`."""
        request = self.peek(now_s)
        if request is not None:
            self.remove(request.request_id)
        return request

    def remove(self, request_id: Hashable) -> None:
        """See `Discipline.remove`."""
        del self._live[request_id]
        if len(self._by_rank) + len(self._by_arrival) > 4 * len(self._live) + 64:
            self._by_rank = self._living(self._by_rank)
            self._by_arrival = self._living(self._by_arrival)

    def _head(self, heap: list[_Entry]) -> Waiting:
        while self._live.get(heap[0][4].request_id) != heap[0][3]:
            heapq.heappop(heap)
        return heap[0][4]

    def _living(self, heap: list[_Entry]) -> list[_Entry]:
        living = [entry for entry in heap if self._live.get(entry[4].request_id) == entry[3]]
        heapq.heapify(living)
        return living


class Fcfs(_Ordered):
    """First come, first served: nobody is ever passed."""

    def __init__(self, starvation_s: float = 300.0) -> None:
        super().__init__(starvation_s, lambda request: request.arrived_s)


class Edf(_Ordered):
    """Earliest deadline first; equal deadlines first come first served."""

    def __init__(self, starvation_s: float = 300.0) -> None:
        super().__init__(starvation_s, lambda request: request.deadline_s)


class Mlfq(_Ordered):
    """Multi-level feedback queue: level 0 below `quantum_tokens` of attained service, each next level twice
    as wide; a lower level goes first, first come first served within one.
    """

    def __init__(self, starvation_s: float = 300.0, quantum_tokens: int = 256) -> None:
        if quantum_tokens < 1:
            raise ValueError(f"quantum_tokens must be at least 1, got {quantum_tokens}")
        self._quantum_tokens = quantum_tokens
        super().__init__(starvation_s, self.level)

    def level(self, request: Waiting) -> int:
        """The level: 0 for less than one quantum attained, then by powers of two."""
        return (request.attained_tokens // self._quantum_tokens).bit_length()


class UnknownDisciplineError(ValueError):
    """No discipline has this name; the text lists those there are."""


_BUILT_IN: Mapping[str, Callable[[float], Discipline]] = {"fcfs": Fcfs, "edf": Edf, "mlfq": Mlfq}


def load_discipline(name: str, starvation_s: float = 300.0) -> Discipline:
    """Makes an empty queue of this discipline. Raises UnknownDisciplineError or ValueError."""
    if name not in _BUILT_IN:
        raise UnknownDisciplineError(f"unknown discipline {name!r}: known are {', '.join(sorted(_BUILT_IN))}")
    return _BUILT_IN[name](starvation_s)
