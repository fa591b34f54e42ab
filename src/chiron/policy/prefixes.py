"""Which instances are believed to have computed the beginning of a prompt. Pure.

A prompt's beginnings are named by a chain of hashes: each one stands for all of the prompt up to its block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence


class PrefixIndex:
    """Hash → who holds it, the least recently used hashes forgotten first.

    An entry takes about 130 bytes, 350 where several hold it and no neighbour shares their set.

    A holder whose belief is void as a whole (it has started anew, or dropped its cache) gets a new mark: what
    stands under its old one counts no more, and goes as it ages.
    """

    def __init__(self, limit: int) -> None:
        """An empty index of at most `limit` hashes."""
        self._limit = limit
        self._entries: OrderedDict[Hashable, frozenset[int]] = OrderedDict()
        self._marks: dict[str, int] = {}
        self._holders: dict[int, str] = {}
        self._alone: dict[int, frozenset[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def void(self, holder: str) -> None:
        """Nothing is believed of a holder any more. O(1)."""
        mark = self._marks.pop(holder, None)
        if mark is not None:
            del self._holders[mark], self._alone[mark]

    def add(self, holder: str, hashes: Sequence[Hashable]) -> None:
        """A holder has, or is about to have, what these hashes stand for; a chain is given from its head."""
        mark = self._marks.get(holder)
        if mark is None:
            mark = self._next = self._next + 1
            self._marks[holder], self._holders[mark] = mark, holder
            self._alone[mark] = frozenset((mark,))
        entries, alone = self._entries, self._alone[mark]
        before = after = alone
        # From its end, so that a chain is forgotten from there too.
        for key in reversed(hashes):
            marks = entries.get(key)
            if marks is None:
                entries[key] = alone
                continue
            if mark not in marks:
                if marks is not before:
                    # The hashes of one chain have their holders in common, as a rule: they share the set too.
                    before = marks
                    after = frozenset((mark, *(one for one in marks if one in self._holders)))
                entries[key] = after
            entries.move_to_end(key)
        while len(entries) > self._limit:
            entries.popitem(last=False)

    def gone(self, holder: str, hashes: Iterable[Hashable]) -> None:
        """A holder has none of these any more."""
        mark, entries = self._marks.get(holder), self._entries
        if mark is None:
            return
        for key in hashes:
            marks = entries.get(key)
            if marks is not None and mark in marks:
                left = frozenset(one for one in marks if one != mark and one in self._holders)
                if left:
                    entries[key] = left
                else:
                    del entries[key]

    def depths(self, hashes: Sequence[Hashable]) -> dict[str, int]:
        """Holder → how many leading hashes it is believed to have; holders of none are left out."""
        entries, holders = self._entries, self._holders
        found: dict[str, int] = {}
        current: frozenset[int] | None = None
        depth = 0
        for depth, key in enumerate(hashes):
            marks = entries.get(key)
            if marks is None:
                break
            if current is None:
                current = marks
            elif marks is not current:
                kept = current & marks
                if len(kept) < len(current):
                    for mark in current - kept:
                        if mark in holders:
                            found[holders[mark]] = depth
                    if not kept:
                        return found
                current = kept
        else:
            depth = len(hashes)
        for mark in current or ():
            if mark in holders:
                found[holders[mark]] = depth
        return found
