"""Request groups: batch requests with similar deadlines, first come first served within the group.

The idea of groups is the paper's (arXiv 2501.08090) and QLM's (arXiv 2407.00047); the clustering
(`chiron.policy.deadline_cells`) is reconstructed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from chiron.policy.deadline_cells import DeadlineCells
from chiron.policy.snapshots import BatchBacklog


@dataclass(frozen=True, slots=True)
class GroupedRequest:
    """A batch request that waits."""

    request_id: Hashable
    deadline_s: float
    """Absolute, on the caller's clock, in seconds; finite."""
    arrived_s: float
    """When it first arrived; one that was preempted keeps it, and so returns to its place."""
    prompt_tokens: int = 0
    place: int = 0
    """Orders those that arrived at the same instant; one that was preempted keeps it. Of equal ones, the
    first to be added is first."""


@dataclass(frozen=True, slots=True)
class RequestGroup:
    """One group as it stands."""

    earliest_deadline_s: float
    requests: int
    prompt_tokens: int
    """Sum over its requests."""


_Entry = tuple[float, int, int, GroupedRequest]
"""By arrival or by deadline, place, and the number of the addition."""


@dataclass(slots=True)
class _Cell:
    """Requests whose deadlines fall into one cell; entries of those that have left are dropped late."""

    by_arrival: list[_Entry] = field(default_factory=list)
    by_deadline: list[_Entry] = field(default_factory=list)
    requests: int = 0
    prompt_tokens: int = 0


class RequestGroups:
    """The groups of one model's batch queue.

    Adding, removing and taking a request cost O(log n) comparisons (amortised) for n requests queued, plus
    at most `cells_per_span` cells looked at; reading the groups costs O(cells).
    """

    def __init__(self, width_s: float = 30.0, cells_per_span: int = 4) -> None:
        """width_s: cell width in seconds, > 0. Raises ValueError naming what is out of range."""
        self._cells = DeadlineCells(_Cell, width_s, cells_per_span)
        self._where: dict[Hashable, tuple[int, int, int]] = {}
        self._added = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._where)

    def __contains__(self, request_id: Hashable) -> bool:
        """Tell whether a request waits here."""
        return request_id in self._where

    def add(self, request: GroupedRequest) -> None:
        """Enqueue. Raises ValueError for an id that waits already or a deadline that is not finite."""
        if request.request_id in self._where:
            raise ValueError(f"request {request.request_id!r} waits already")
        if not math.isfinite(request.deadline_s):
            raise ValueError(f"deadline_s of {request.request_id!r} must be finite, got {request.deadline_s}")
        index = self._cells.index(request.deadline_s)
        cell = self._cells.occupy(index)
        self._added += 1
        self._where[request.request_id] = (index, self._added, request.prompt_tokens)
        heapq.heappush(cell.by_arrival, (request.arrived_s, request.place, self._added, request))
        heapq.heappush(cell.by_deadline, (request.deadline_s, request.place, self._added, request))
        cell.requests += 1
        cell.prompt_tokens += request.prompt_tokens

    def remove(self, request_id: Hashable) -> None:
        """Take a request out, whatever its place: it was cancelled. Raises KeyError if it does not wait."""
        index, _, prompt_tokens = self._where.pop(request_id)
        cell = self._cells[index]
        cell.requests -= 1
        cell.prompt_tokens -= prompt_tokens
        if not cell.requests:
            self._cells.vacate(index)
        elif len(cell.by_arrival) + len(cell.by_deadline) > 4 * cell.requests + 64:
            cell.by_arrival = self._living(cell.by_arrival)
            cell.by_deadline = self._living(cell.by_deadline)

    def peek(self) -> GroupedRequest | None:
        """The next to run: the first come of the group with the earliest deadline; None: nothing waits."""
        heads = (self._head(self._cells[index].by_arrival) for index in next(self._cells.runs(), ()))
        first = min(heads, default=None, key=_order)
        return first[3] if first else None

    def oldest(self) -> GroupedRequest | None:
        """Who came first of all groups; None: nothing waits. O(cells)."""
        heads = (self._head(cell.by_arrival) for cell in self._cells.cells())
        first = min(heads, default=None, key=_order)
        return first[3] if first else None

    def pop(self) -> GroupedRequest | None:
        """Take the next to run out and return it; None: nothing waits."""
        request = self.peek()
        if request is not None:
            self.remove(request.request_id)
        return request

    def ahead(self, deadline_s: float) -> int:
        """Requests that go before a new one with this deadline: earlier groups and its own. O(cells)."""
        index = self._cells.index(deadline_s)
        found = 0
        for run in self._cells.runs():
            if run[0] > index:
                break
            found += sum(self._cells[each].requests for each in run)
        return found

    def groups(self) -> tuple[RequestGroup, ...]:
        """The groups in the order of their deadlines."""
        return tuple(self._group(run) for run in self._cells.runs())

    def backlog(self, now_s: float) -> tuple[BatchBacklog, ...]:
        """The same as a snapshot tells it, deadlines counted from `now_s`."""
        return tuple(
            BatchBacklog(group.earliest_deadline_s - now_s, group.requests, group.prompt_tokens)
            for group in self.groups()
        )

    def _group(self, run: list[int]) -> RequestGroup:
        cells = [self._cells[index] for index in run]
        return RequestGroup(
            self._head(cells[0].by_deadline)[0],
            sum(cell.requests for cell in cells),
            sum(cell.prompt_tokens for cell in cells),
        )

    def _head(self, heap: list[_Entry]) -> _Entry:
        while not self._lives(heap[0]):
            heapq.heappop(heap)
        return heap[0]

    def _lives(self, entry: _Entry) -> bool:
        where = self._where.get(entry[3].request_id)
        return where is not None and where[1] == entry[2]

    def _living(self, heap: list[_Entry]) -> list[_Entry]:
        living = [entry for entry in heap if self._lives(entry)]
        heapq.heapify(living)
        return living


def _order(entry: _Entry) -> tuple[float, int, int]:
    return entry[:3]
