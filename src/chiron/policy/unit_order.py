"""Which unit of a durable queue goes next: its items have one tenant, one deadline and one model.

- Units go in request groups of similar deadlines (`chiron.policy.deadline_cells`), the earliest group first.
  Those whose deadline has passed go after everything that can still be in time, in the same order: by the
  earliest deadline alone, one late unit would make the next one late.
- Within a group tenants share by weight (`chiron.policy.fair_shares`); of one tenant the lowest priority
  number goes first, then who was accepted first.
- Units whose turn has not come for `starvation_s` share one item in every `starving_every`, one after the
  other, until it comes: with n of them, each gets at least one item in n times so many (reconstructed).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from chiron.policy.deadline_cells import DeadlineCells
from chiron.policy.fair_shares import FairShares
from chiron.policy.groups import RequestGroup
from chiron.policy.work_units import Taken, WorkUnit, unit_groups


@dataclass(slots=True)
class _State:
    unit: WorkUnit
    left: int
    turn_s: float
    """When it last had its turn, or was accepted."""
    starves: bool = False
    """Its turn has not come for too long."""
    rotates: bool = False
    """It is among those that share the items for the starving."""
    until_s: float = 0.0
    """It is withheld until then."""
    parked: bool = False
    """It has an entry among the withheld ones."""
    place: tuple[bool, int] | None = None
    """Whether among the late ones, and the cell; None: it is not in line."""
    at: tuple[bool, int] | None = None
    """Where it has an entry, though it may have left the line; None: nowhere."""
    entry: int = 0
    """Number of that entry."""


@dataclass(slots=True)
class _Cell:
    units: dict[str, list[tuple[int, float, int, Hashable]]] = field(default_factory=dict)
    """Tenant → its units in order; entries of those that have left are dropped late."""
    tenants: list[tuple[float, str]] = field(default_factory=list)
    """By the tag that each had when it was last looked at, then by name: all cells of a group choose the
    same one of several; one entry for each tenant in `units`."""


class UnitOrder:
    """What waits for one model. Clocks never go back.

    Taking costs O(log n) for n units, amortised, besides the cells of one group; `update` O(n log n) for
    those that are new and O(n) for the others.
    """

    def __init__(
        self,
        weight: Callable[[str], float] = lambda _: 1.0,
        starvation_s: float = 3600.0,
        starving_every: int = 16,
    ) -> None:
        """Raises ValueError naming what is out of range."""
        if not starvation_s > 0:
            raise ValueError(f"starvation_s must be positive, got {starvation_s}")
        if starving_every < 2:
            raise ValueError(f"starving_every must be at least 2, got {starving_every}")
        self.shares = FairShares(weight)
        self._starvation_s = starvation_s
        self._starving_every = starving_every
        self._since_starving = 0
        self._states: dict[Hashable, _State] = {}
        self._lines = {late: DeadlineCells(_Cell) for late in (False, True)}
        self._by_deadline: list[tuple[float, int, Hashable]] = []
        self._by_turn: list[tuple[float, int, Hashable]] = []
        self._starving: deque[Hashable] = deque()
        self._withheld: list[tuple[float, int, Hashable]] = []
        self._entries = 0
        self._groups: tuple[RequestGroup, ...] | None = None

    def __len__(self) -> int:
        """Items that wait, as far as known, those withheld included."""
        return sum(state.left for state in self._states.values())

    def __bool__(self) -> bool:
        """Whether any unit is known."""
        return bool(self._states)

    def __contains__(self, key: Hashable) -> bool:
        """Whether the unit is known."""
        return key in self._states

    def update(self, units: Iterable[WorkUnit], now_s: float) -> None:
        """Everything that waits now; what is not among it waits no more."""
        told = {unit.key: unit for unit in units if unit.items > 0}
        for key in [key for key in self._states if key not in told]:
            self._leave(self._states.pop(key))
        tenants = {unit.tenant for unit in told.values()}
        for key, unit in told.items():
            state = self._states.get(key)
            if state is None:
                state = self._states[key] = _State(unit, unit.items, min(unit.accepted_s, now_s))
                self._push(self._by_deadline, unit.deadline_s, key)
                self._push(self._by_turn, state.turn_s, key)
            elif _rank(state.unit) != _rank(unit):
                self._leave(state)
                state.at = None
                self._push(self._by_deadline, unit.deadline_s, key)
            state.unit, state.left = unit, unit.items
            if state.place is None and state.until_s <= now_s:
                self._join(state, now_s)
        self.shares.forget_except(tenants)
        self._groups = None
        self._trim()

    def take(self, now_s: float) -> Taken | None:
        """Takes one item of the unit that is next; None: nothing that may go waits."""
        self._pass_time(now_s)
        state = self._neglected(now_s)
        in_turn = state is None
        if state is None:
            state = self._first(self._lines[False]) or self._first(self._lines[True])
        if state is None:
            return None
        unit = state.unit
        self._since_starving = self._since_starving + 1 if in_turn else 0
        charged = self.shares.cost(unit.tenant, unit.prompt_tokens / unit.items, unit.max_tokens / unit.items)
        self.shares.charge(unit.tenant, charged, in_turn=in_turn)
        if in_turn:
            state.turn_s = now_s
        state.left -= 1
        if not state.left:
            self._leave(state)
        return Taken(unit.key, unit.tenant, charged)

    def put_back(self, taken: Taken, now_s: float) -> None:
        """An item that was taken waits again."""
        self.shares.give_back(taken.tenant, taken.charged)
        state = self._states.get(taken.key)
        if state is not None:
            state.left += 1
            if state.place is None and state.until_s <= now_s:
                self._join(state, now_s)

    def withhold(self, key: Hashable, until_s: float) -> None:
        """The unit gives nothing before then."""
        state = self._states.get(key)
        if state is not None and until_s > state.until_s:
            state.until_s = until_s
            self._leave(state)
            if not state.parked:
                state.parked = True
                self._push(self._withheld, until_s, key)

    def ready(self, now_s: float) -> bool:
        """Whether `take` would find anything."""
        self._pass_time(now_s)
        return any(bool(line) for line in self._lines.values())

    def next_ready_s(self) -> float | None:
        """When the next unit is withheld no more; None: none is."""
        return self._withheld[0][0] if self._withheld else None

    def groups(self) -> tuple[RequestGroup, ...]:
        """All that waited at the last `update`, in groups, the earliest deadline first."""
        if self._groups is None:
            self._groups = unit_groups(state.unit for state in self._states.values())
        return self._groups

    # Joining and leaving a line.

    def _join(self, state: _State, now_s: float) -> None:
        unit, late = state.unit, state.unit.deadline_s <= now_s
        line = self._lines[late]
        index = line.index(unit.deadline_s)
        cell = line.occupy(index)
        state.place = (late, index)
        if state.starves and not state.rotates:
            state.rotates = True
            self._starving.append(unit.key)
        if state.at == state.place:
            return
        self._entries += 1
        state.at, state.entry = state.place, self._entries
        heap = cell.units.get(unit.tenant)
        if heap is None:
            heap = cell.units[unit.tenant] = []
            heapq.heappush(cell.tenants, (self.shares.tag(unit.tenant), unit.tenant))
        heapq.heappush(heap, (unit.priority, unit.accepted_s, self._entries, unit.key))

    def _leave(self, state: _State) -> None:
        """Its entry stays until it is at the head of its heap; a cell without any other is vacated at
        once."""
        if state.place is None:
            return
        late, index = state.place
        state.place = None
        cell = self._lines[late][index]
        while cell.tenants and self._head(cell, cell.tenants[0][1]) is None:
            del cell.units[heapq.heappop(cell.tenants)[1]]
        if not cell.tenants:
            self._lines[late].vacate(index)

    def _head(self, cell: _Cell, tenant: str) -> _State | None:
        heap = cell.units[tenant]
        while heap:
            state = self._states.get(heap[0][3])
            if state is not None and state.entry == heap[0][2]:
                if state.place is not None and state.place == state.at:
                    return state
                state.at = None
            heapq.heappop(heap)
        return None

    # Who is next.

    def _pass_time(self, now_s: float) -> None:
        while self._withheld and self._withheld[0][0] <= now_s:
            key = heapq.heappop(self._withheld)[2]
            state = self._states.get(key)
            if state is None or not state.parked:
                continue
            state.parked = state.until_s > now_s
            if state.parked:
                self._push(self._withheld, state.until_s, key)
            elif state.place is None and state.left:
                self._join(state, now_s)
        while self._by_deadline and self._by_deadline[0][0] <= now_s:
            state = self._states.get(heapq.heappop(self._by_deadline)[2])
            if state is not None and state.place is not None and not state.place[0]:
                self._leave(state)
                self._join(state, now_s)

    def _first(self, line: DeadlineCells[_Cell]) -> _State | None:
        """The first of the tenant with the lowest tag in the earliest group."""
        for run in line.runs():
            best: tuple[float, str, int, float, int] | None = None
            found: _State | None = None
            for index in run:
                tenant = self._lowest(line[index])
                if tenant is None:
                    continue
                head = self._head(line[index], tenant)
                if head is None:
                    continue
                tag, unit = self.shares.tag(tenant), head.unit
                rank = (tag, tenant, unit.priority, unit.accepted_s, head.entry)
                if best is None or rank < best:
                    best, found = rank, head
            if found is not None:
                return found
        return None

    def _lowest(self, cell: _Cell) -> str | None:
        """The tenant with the lowest tag that has something in the cell."""
        heap = cell.tenants
        while heap:
            known, tenant = heap[0]
            if self._head(cell, tenant) is None:
                heapq.heappop(heap)
                del cell.units[tenant]
                continue
            tag = self.shares.tag(tenant)
            if tag <= known:
                return tenant
            heapq.heapreplace(heap, (tag, tenant))
        return None

    def _neglected(self, now_s: float) -> _State | None:
        """Whose turn has not come for too long, where it is time for one of those."""
        while self._by_turn and self._by_turn[0][0] + self._starvation_s <= now_s:
            key = heapq.heappop(self._by_turn)[2]
            state = self._states.get(key)
            if state is None or state.starves:
                continue
            if state.turn_s + self._starvation_s > now_s:
                self._push(self._by_turn, state.turn_s, key)
                continue
            state.starves = state.rotates = True
            self._starving.append(key)
        if self._since_starving + 1 < self._starving_every:
            return None
        while self._starving:
            key = self._starving.popleft()
            state = self._states.get(key)
            if state is None or not state.rotates:
                continue
            state.rotates = state.place is not None
            if not state.rotates:
                continue  # It comes back when it joins the line again.
            if state.turn_s + self._starvation_s > now_s:
                state.starves = state.rotates = False
                self._push(self._by_turn, state.turn_s, key)
                continue
            self._starving.append(key)
            return state
        return None

    def _trim(self) -> None:
        """Drops the entries of units that are gone, where they have become many."""
        most = 2 * len(self._states) + 64
        if len(self._by_deadline) > most:
            self._by_deadline.clear()
            for key, state in self._states.items():
                self._push(self._by_deadline, state.unit.deadline_s, key)
        if len(self._by_turn) > most:
            self._by_turn.clear()
            for key, state in self._states.items():
                if not state.starves:
                    self._push(self._by_turn, state.turn_s, key)
        if len(self._withheld) > most:
            self._withheld.clear()
            for key, state in self._states.items():
                if state.parked:
                    self._push(self._withheld, state.until_s, key)

    def _push(self, heap: list[tuple[float, int, Hashable]], at_s: float, key: Hashable) -> None:
        self._entries += 1
        heapq.heappush(heap, (at_s, self._entries, key))


def _rank(unit: WorkUnit) -> tuple[str, float, int, float]:
    return unit.tenant, unit.deadline_s, unit.priority, unit.accepted_s
