"""Where a request goes under `least-requests`, without looking at every instance: a heap, mended late."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from chiron.policy.words import Role
from chiron.sim.seen import Seen

if TYPE_CHECKING:
    from chiron.sim.picking import Cached, Picker

_INTERACTIVE, _BATCH = 0, 2
"""Places in `Seen.entries`, those of `chiron.sim.picking.Pick`."""
_OTHER_CLASS = {_INTERACTIVE: Role.BATCH, _BATCH: Role.INTERACTIVE}
_Entry = tuple[float, str, bool, Seen]


class FewestPicker:
    """`GivingWay(LeastRequestsDispatcher())` as an index. O(log n) per change of an instance.

    An entry is (share of slots wanted, id, whether a request would wait, what is seen).
    """

    def __init__(self, queue_allowance: int, scanning: Callable[[], Picker]) -> None:
        """scanning: makes a picker that asks the dispatcher, for requests to which batch work gives way."""
        self._allowance = queue_allowance
        self._make_scanning = scanning
        self._scanning: Picker | None = None
        self._seen: dict[str, Seen] = {}
        self._heaps: dict[int, list[_Entry]] = {_INTERACTIVE: [], _BATCH: []}
        self._stale: dict[int, dict[str, Seen]] = {_INTERACTIVE: {}, _BATCH: {}}

    def changed(self, seen: Seen) -> None:
        """See `Picker.changed`."""
        key = seen.instance_id
        if seen.accepts:
            self._seen[key] = seen
        else:
            self._seen.pop(key, None)
        self._stale[_INTERACTIVE][key] = self._stale[_BATCH][key] = seen
        if self._scanning is not None:
            self._scanning.changed(seen)

    def pick_interactive(
        self, prompt_tokens: int, yielding: bool, cached: Cached | None = None
    ) -> tuple[Seen, bool] | None:
        """See `Picker.pick_interactive`."""
        if not yielding:
            return self._pick(_INTERACTIVE)
        if self._scanning is None:
            self._scanning = self._make_scanning()
            for seen in self._seen.values():
                self._scanning.changed(seen)
        return self._scanning.pick_interactive(prompt_tokens, yielding)

    def pick_batch(self, prompt_tokens: int, cached: Cached | None = None) -> tuple[Seen, bool] | None:
        """See `Picker.pick_batch`."""
        return self._pick(_BATCH)

    def _pick(self, kind: int) -> tuple[Seen, bool] | None:
        heap, stale = self._heaps[kind], self._stale[kind]
        if stale:
            self._mend(kind, heap, stale)
        while heap:
            entry = heap[0]
            seen = entry[3]
            if seen.entries[kind] is entry:
                return seen, entry[2]
            heappop(heap)
        return None

    def _mend(self, kind: int, heap: list[_Entry], stale: dict[str, Seen]) -> None:
        wrong, allowance = _OTHER_CLASS[kind], self._allowance
        for seen in stale.values():
            entry: _Entry | None = None
            if seen.accepts and seen.role is not wrong:
                size = seen.batch_size
                there = seen.running_interactive + seen.running_batch + seen.reserved
                there += seen.waiting_interactive + seen.waiting_batch
                if there < size + allowance:
                    entry = there / size, seen.instance_id, there >= size, seen
            if entry != seen.entries[kind]:
                seen.entries[kind] = entry
                if entry is not None:
                    heappush(heap, entry)
        stale.clear()
        if len(heap) > 4 * len(self._seen) + 64:
            heap[:] = [entry for entry in heap if entry[3].entries[kind] is entry]
            heapify(heap)
