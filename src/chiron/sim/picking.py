"""Where a request goes: any dispatcher over cached views, or one of the built-in ones kept as an index."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Any, Protocol

from chiron.policy.affinity import Key, Offer, prefer_cached
from chiron.policy.checked import CheckedDispatcher
from chiron.policy.dispatch import (
    MOST_WAITING,
    Decision,
    Dispatcher,
    DispatchRequest,
    InstanceView,
    LeastExpectedWait,
)
from chiron.policy.giving_way import GivingWay, waits
from chiron.policy.words import RequestClass, Role
from chiron.sim.baselines.least_requests import LeastRequestsDispatcher
from chiron.sim.baselines.llumnix import FreenessDispatcher
from chiron.sim.fewest import FewestPicker
from chiron.sim.freest import FreestPicker
from chiron.sim.seen import Seen


class Pick(IntEnum):
    """What an index is kept for."""

    INTERACTIVE = 0
    """A place for an interactive request, all running requests counted."""
    YIELDING = 1
    """The same, batch work on mixed instances not counted: it gives way."""
    BATCH = 2
    """A place for a batch request."""


_INTERACTIVE_PICK, _YIELDING_PICK, _BATCH_PICK = Pick
_INTERACTIVE, _BATCH, _MIXED = Role.INTERACTIVE, Role.BATCH, Role.MIXED
# Names of their own, for an index entry is made after every change.


Cached = Mapping[str, int]
NONE_CACHED: Cached = MappingProxyType({})


class Picker(Protocol):
    """Chooses among the instances of one model that it was told of."""

    def changed(self, seen: Seen) -> None:
        """Note that what the router sees of an instance has changed, or that it is new or gone."""
        ...

    def pick_interactive(
        self, prompt_tokens: int, yielding: bool, cached: Cached = NONE_CACHED
    ) -> tuple[Seen, bool] | None:
        """Return an instance, and whether the request is expected to wait there; None: all are full.

        yielding: batch work gives way where no slot is free, see `GivingWay`. cached: instance id → tokens of
        the prompt in its cache.
        """
        ...

    def pick_batch(self, prompt_tokens: int, cached: Cached = NONE_CACHED) -> tuple[Seen, bool] | None:
        """Return the same for a batch request."""
        ...


def make_picker(dispatcher: Dispatcher, queue_allowance: int) -> Picker:
    """The fastest picker that decides as the dispatcher does."""
    if type(dispatcher) is LeastExpectedWait:
        return IndexedPicker(queue_allowance)
    if type(dispatcher) is LeastRequestsDispatcher:
        return FewestPicker(queue_allowance, lambda: ScanningPicker(dispatcher, queue_allowance))
    if type(dispatcher) is FreenessDispatcher:
        return FreestPicker(dispatcher, queue_allowance, lambda: ScanningPicker(dispatcher, queue_allowance))
    return ScanningPicker(dispatcher, queue_allowance)


class ScanningPicker:
    """Asks a dispatcher, with views made anew only for instances that changed. Its picks are checked."""

    def __init__(self, dispatcher: Dispatcher, queue_allowance: int) -> None:
        self._dispatcher = CheckedDispatcher(dispatcher)
        self._giving_way = GivingWay(self._dispatcher)
        self._allowance = queue_allowance
        self._seen: dict[str, Seen] = {}
        self._views: dict[str, InstanceView] = {}
        self._list: list[InstanceView] | None = None

    def changed(self, seen: Seen) -> None:
        """See `Picker.changed`."""
        self._list = None
        key = seen.instance_id
        if seen.accepts:
            self._seen[key] = seen
            self._views[key] = seen.view(self._allowance)
        else:
            self._seen.pop(key, None)
            self._views.pop(key, None)

    def pick_interactive(
        self, prompt_tokens: int, yielding: bool, cached: Cached = NONE_CACHED
    ) -> tuple[Seen, bool] | None:
        """See `Picker.pick_interactive`."""
        dispatcher = self._giving_way if yielding else self._dispatcher
        wanted = DispatchRequest(RequestClass.INTERACTIVE, prompt_tokens, cached_tokens=cached)
        return self._pick(dispatcher, wanted)

    def pick_batch(self, prompt_tokens: int, cached: Cached = NONE_CACHED) -> tuple[Seen, bool] | None:
        """See `Picker.pick_batch`."""
        wanted = DispatchRequest(RequestClass.BATCH, prompt_tokens, cached_tokens=cached)
        return self._pick(self._dispatcher, wanted)

    def _pick(self, dispatcher: Dispatcher, request: DispatchRequest) -> tuple[Seen, bool] | None:
        if self._list is None:
            self._list = list(self._views.values())
        decision = dispatcher.pick(request, self._list)
        if not isinstance(decision, Decision):
            return None
        return self._seen[decision.instance_id], waits(decision)


_Entry = tuple[Any, ...]
_WAITS = 2
"""First item of the entry of an instance where the request would wait."""


class IndexedPicker:
    """`GivingWay(LeastExpectedWait())` without looking at every instance: a heap per `Pick`, mended later.

    An entry orders instances as that dispatcher does: (role's rank, share of slots in use, ITL, id) where a
    slot is free, after all of those (2, wait, rank, share, ITL, id). O(log n) per change of an instance.
    Only where requests wait although slots are free does the order depend on the prompt (whether it fits
    into the KV cache); if such an instance leads and the prompt does not fit, all are looked at. Where parts
    of the prompt are cached, the instances that have some of it are looked at too.
    """

    def __init__(self, queue_allowance: int) -> None:
        self._allowance = queue_allowance
        self._seen: dict[str, Seen] = {}
        self._heaps: list[list[_Entry]] = [[], [], []]
        # What to mend in each heap that has been asked for.
        self._stale: dict[Pick, dict[str, Seen]] = {}
        self._asked: list[dict[str, Seen]] = []

    def changed(self, seen: Seen) -> None:
        """See `Picker.changed`."""
        if seen.accepts:
            self._seen[seen.instance_id] = seen
        else:
            self._seen.pop(seen.instance_id, None)
        for stale in self._asked:
            stale[seen.instance_id] = seen

    def pick_interactive(
        self, prompt_tokens: int, yielding: bool, cached: Cached = NONE_CACHED
    ) -> tuple[Seen, bool] | None:
        """See `Picker.pick_interactive`."""
        found = self._pick(_INTERACTIVE_PICK, prompt_tokens, cached)
        if yielding and (found is None or found[1]):
            found = self._pick(_YIELDING_PICK, prompt_tokens, cached) or found
        return found

    def pick_batch(self, prompt_tokens: int, cached: Cached = NONE_CACHED) -> tuple[Seen, bool] | None:
        """See `Picker.pick_batch`."""
        return self._pick(_BATCH_PICK, prompt_tokens, cached)

    def _pick(self, kind: Pick, prompt_tokens: int, cached: Cached) -> tuple[Seen, bool] | None:
        found = self._least(kind, prompt_tokens)
        if found is None or not cached:
            return found
        warm = [
            offer
            for key in cached
            if (seen := self._seen.get(key)) is not None
            and (offer := self._offer(seen, kind, prompt_tokens)) is not None
        ]
        least = self._offer(found[0], kind, prompt_tokens)
        if not warm or least is None:
            return found
        choice, _ = prefer_cached(prompt_tokens, cached, least, warm)
        return self._seen[choice.instance_id], choice.waits

    def _offer(self, seen: Seen, kind: Pick, prompt_tokens: int) -> Offer | None:
        entry = self._entry(seen, kind, prompt_tokens)
        if entry is None:
            return None
        if entry[0] == _WAITS:
            _, wait_s, mixed, share, itl_ms, name, _ = entry
            key: Key = True, 0, wait_s, mixed, share, itl_ms, name
        else:
            mixed, share, itl_ms, name, _ = entry
            key = False, mixed, 0.0, mixed, share, itl_ms, name
        return Offer(key, seen.role, seen.prefill_tokens_per_s)

    def _least(self, kind: Pick, prompt_tokens: int) -> tuple[Seen, bool] | None:
        stale = self._stale.get(kind)
        if stale is None:
            stale = self._stale[kind] = self._seen.copy()
            self._asked.append(stale)
        if stale:
            self._mend(kind, stale)
        heap = self._heaps[kind]
        while heap:
            entry = heap[0]
            seen: Seen = entry[-1]
            if seen.entries[kind] is not entry:
                heappop(heap)
                continue
            if entry[0] == _WAITS:
                return seen, True
            if seen.kv_free_tokens < prompt_tokens and _waiting(seen, kind):
                return self._scan(kind, prompt_tokens)
            return seen, False
        return None

    def _mend(self, kind: Pick, stale: dict[str, Seen]) -> None:
        heap = self._heaps[kind]
        interactive = kind is _INTERACTIVE_PICK
        for seen in stale.values():
            entries = seen.entries
            batch_size, role = seen.batch_size, seen.role
            ahead, coming = batch_size, 0
            if interactive and seen.accepts and role is not _BATCH:
                coming = seen.waiting_interactive + seen.reserved
                ahead = seen.running_interactive + seen.running_batch + coming
            entry: _Entry | None
            if ahead < batch_size and coming < MOST_WAITING:
                # As _entry() does, for nearly every change of an instance.
                entry = role is _MIXED, ahead / batch_size, seen.itl_ms, seen.instance_id, seen
            else:
                entry = self._entry(seen, kind, 0) if seen.accepts else None
            # A request that was sent there and one that runs there count alike.
            if entry != entries[kind]:
                entries[kind] = entry
                if entry is not None:
                    heappush(heap, entry)
        stale.clear()
        if len(heap) > 4 * len(self._seen) + 64:
            heap[:] = [entry for entry in heap if entry[-1].entries[kind] is entry]
            heapify(heap)

    def _entry(self, seen: Seen, kind: Pick, prompt_tokens: int) -> _Entry | None:
        role = seen.role
        batch_size = seen.batch_size
        mixed = role is _MIXED
        allowance = self._allowance
        waiting = seen.waiting_interactive
        if kind is _BATCH_PICK:
            if role is _INTERACTIVE:
                return None
            waiting += seen.waiting_batch
            if mixed:
                allowance = 0
        elif role is _BATCH:
            return None
        ahead = seen.running_interactive + waiting + seen.reserved
        if not mixed or kind is not _YIELDING_PICK:
            ahead += seen.running_batch
        if ahead < batch_size and kind is not _BATCH_PICK and waiting + seen.reserved >= MOST_WAITING:
            return None
        if ahead < batch_size and not (waiting and seen.kv_free_tokens < prompt_tokens):
            return mixed, ahead / batch_size, seen.itl_ms, seen.instance_id, seen
        if ahead >= batch_size + allowance:
            return None
        excess = ahead + 1 - batch_size
        if excess <= 0:
            excess = waiting + 1
        wait_s = excess * seen.service_s / batch_size
        return _WAITS, wait_s, mixed, ahead / batch_size, seen.itl_ms, seen.instance_id, seen

    def _scan(self, kind: Pick, prompt_tokens: int) -> tuple[Seen, bool] | None:
        entries = (self._entry(seen, kind, prompt_tokens) for seen in self._seen.values())
        best = min((entry for entry in entries if entry is not None), default=None)
        return None if best is None else (best[-1], best[0] == _WAITS)


def _waiting(seen: Seen, kind: Pick) -> int:
    return seen.waiting_interactive + (seen.waiting_batch if kind is Pick.BATCH else 0)
