"""The fewest of a ladder of sizes that will do: by bisection, which is then checked, for it may be wrong.

Bisection presumes that more always does better. Of a policy that is simulated with random arrivals that is
not certain, so that sizes on both sides of what was found are tried as well; a smaller one that will do is
searched on from, and larger ones that will not do are told.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Ask = Callable[[Sequence[int]], Mapping[int, bool]]
"""Tells of sizes whether they will do."""
_BELOW = (1, 2, 3)
_ABOVE = (1, 2)
_FURTHER = (1.25, 1.5)
_OVERVIEW = 5
"""Sizes tried all over the ladder when its largest does not do."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found."""

    size: int | None
    """The smallest that was tried and does; None: none does."""
    tried: Mapping[int, bool]

    @property
    def upsets(self) -> tuple[int, ...]:
        """Sizes above it that do not do, although it does."""
        if self.size is None:
            return ()
        return tuple(size for size, does in sorted(self.tried.items()) if size > self.size and not does)

    @property
    def steady_from(self) -> int | None:
        """The smallest tried from which on every one that was tried does; None: the largest does not."""
        steady = None
        for size, does in sorted(self.tried.items(), reverse=True):
            if not does:
                break
            steady = size
        return steady


def smallest(
    ladder: Sequence[int],
    ask: Ask,
    *,
    start: int,
    width: int = 1,
    check: bool = True,
    also: Sequence[int] = (),
) -> Found:
    """Searches a ladder.

    Args:
        ladder: sizes, ascending.
        ask: tells of a few sizes at once whether they will do; of one size once only.
        start: where to begin: a guess.
        width: how many sizes are asked about at once.
        check: ask about neighbours of the answer as well, and search on where they contradict it.
        also: sizes to ask about in any case.

    Raises:
        ValueError: the ladder is empty.
    """
    if not ladder:
        raise ValueError("ladder: must not be empty")
    search = _Search(ladder, ask)
    search.try_([bisect_left(ladder, size) for size in also if size in set(ladder)])
    search.gallop(bisect_left(ladder, start), width)
    if search.high is None:
        search.try_([round(at * (len(ladder) - 1) / _OVERVIEW) for at in range(_OVERVIEW)])
    while search.high is not None:
        search.bisect(width)
        if not check or not search.contradicted():
            break
    return Found(
        None if search.high is None else ladder[search.high],
        {ladder[place]: does for place, does in sorted(search.known.items())},
    )


class _Search:
    """Works on places in the ladder."""

    def __init__(self, ladder: Sequence[int], ask: Ask) -> None:
        self._ladder, self._ask = ladder, ask
        self.known: dict[int, bool] = {}

    @property
    def high(self) -> int | None:
        """The first place that is known to do."""
        return min((place for place, does in self.known.items() if does), default=None)

    def _low(self) -> int:
        """The last place below that is known not to do; -1: none is."""
        high = len(self._ladder) if self.high is None else self.high
        return max((place for place, does in self.known.items() if not does and place < high), default=-1)

    def try_(self, places: Sequence[int]) -> None:
        """Asks about those places that are there and not known."""
        wanted = sorted({place for place in places if 0 <= place < len(self._ladder)} - self.known.keys())
        if wanted:
            told = self._ask([self._ladder[place] for place in wanted])
            self.known |= {place: told[self._ladder[place]] for place in wanted}

    def gallop(self, start: int, width: int) -> None:
        """Goes up from a guess in strides that double, until something does or the ladder ends."""
        last = len(self._ladder) - 1
        place = min(start, last)
        stride = max(1, place // 4)
        while self.high is None and last not in self.known:
            places = []
            for _ in range(width):
                places.append(min(place, last))
                place, stride = place + stride, 2 * stride
            self.try_(places)
        if self.high is not None and self.high <= start:
            # The guess is a bound, so that the next smaller size is likely not to do.
            self.try_([self.high - 1])

    def bisect(self, width: int) -> None:
        """Narrows what is between the last place that does not do and the first that does."""
        while (high := self.high) is not None and high - (low := self._low()) > 1:
            inside = min(width, high - low - 1)
            self.try_([low + (high - low) * (at + 1) // (inside + 1) for at in range(inside)])

    def contradicted(self) -> bool:
        """Tries the neighbours of the answer; tells whether one below does, after all."""
        found = self.high
        assert found is not None
        size = self._ladder[found]
        further = [bisect_left(self._ladder, round(size * factor)) for factor in _FURTHER]
        self.try_([*(found - by for by in _BELOW), *(found + by for by in _ABOVE), *further])
        return self.high != found
