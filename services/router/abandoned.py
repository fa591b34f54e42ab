"""How much callers abandon of what they open, and who is turned away while that is too much. Pure.

Counts fade, to a third in two and a half seconds, so that a count over the memory is a rate. While all
together are above the limit, it is shared out evenly, first among owners, then among the lines of each: who
has abandoned less than its share goes on as if nothing were the matter. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_MEMORY_S = 2.5
_FIRST_PAUSE_S = 1.0
_STEP_S = 0.5
"""Pauses are multiples of it, so that few different answers need to be made."""
_BAND = 0.25
"""Of its share: who is above it by as much is always turned away, who is above it by less, less often."""
_SHARES_S = 0.1
"""How long shares stay in force before they are made anew."""
_NOTHING = 0.05
_REBASE_S = 100 * _MEMORY_S
_FEW = 64


@dataclass(frozen=True, slots=True)
class Opener:
    """Who opens a call, as far as that is known before anything is proved."""

    owner: str
    """The tenant, or the host where nobody is asked who calls."""
    line: str
    """The connection, with the id of the API key that is shown on it."""


@dataclass(slots=True)
class _Owner:
    total: float = 0.0
    lines: dict[str, float] = field(default_factory=dict)
    share: float = math.inf
    """Of each of its lines."""


class Abandoned:
    """What has been abandoned lately, by owner and line."""

    def __init__(self, per_s: float, now: float, draw: Callable[[], float]) -> None:
        """Nothing so far.

        Args:
            per_s: most that all may abandon together, in calls a second; 0: any number.
            now: the time.
            draw: a number from 0 up to 1, evenly.
        """
        self._draw = draw
        self._most = per_s * _MEMORY_S
        self._base = now
        # What is counted later weighs more, instead of what is there weighing less.
        self._total = 0.0
        self._owners: dict[str, _Owner] = {}
        self._shared_at = -math.inf
        self._lines = 0
        self._prune_at = _FEW

    def __len__(self) -> int:
        return self._lines

    def count(self, opener: Opener, now: float) -> None:
        """The opener has abandoned a call."""
        if not self._most:
            return
        if now - self._base > _REBASE_S or self._lines > self._prune_at:
            self._prune(now)
        weight = self._weight(now)
        owner = self._owners.setdefault(opener.owner, _Owner())
        self._lines += opener.line not in owner.lines
        owner.lines[opener.line] = owner.lines.get(opener.line, 0.0) + weight
        owner.total += weight
        self._total += weight

    def too_much(self, now: float) -> bool:
        """Whether anybody is turned away."""
        return bool(self._most) and self._total > self._most * self._weight(now)

    def pause_s(self, opener: Opener, now: float) -> float:
        """For how long the opener should stay away; 0: it may come in."""
        if not self.too_much(now):
            return 0.0
        most = self._most * self._weight(now)
        if not 0 <= now - self._shared_at < _SHARES_S:
            self._share_out(most)
            self._shared_at = now
        owner = self._owners.get(opener.owner)
        over = owner.lines.get(opener.line, 0.0) / owner.share - 1.0 if owner is not None else 0.0
        # Not all at once: a line that is shut and opened in turn lets everything in together.
        if over < 0 or over < _BAND * self._draw():
            return 0.0
        pause_s = _MEMORY_S * math.log(self._total / most)
        return max(_FIRST_PAUSE_S, _STEP_S * math.ceil(pause_s / _STEP_S))

    def _weight(self, now: float) -> float:
        return math.exp(min((now - self._base) / _MEMORY_S, 600.0))

    def _share_out(self, most: float) -> None:
        fair = _share((owner.total for owner in self._owners.values()), most)
        for owner in self._owners.values():
            owner.share = math.inf if owner.total < fair else _share(owner.lines.values(), fair)

    def _prune(self, now: float) -> None:
        """Forgets what has faded away, and lets what is left weigh what it does now."""
        weight = self._weight(now)
        owners: dict[str, _Owner] = {}
        for name, owner in self._owners.items():
            lines = {line: count / weight for line, count in owner.lines.items() if count > _NOTHING * weight}
            if lines:
                owners[name] = _Owner(sum(lines.values()), lines)
        self._owners, self._base, self._shared_at = owners, now, -math.inf
        self._total = sum(owner.total for owner in owners.values())
        self._lines = sum(len(owner.lines) for owner in owners.values())
        self._prune_at = 2 * self._lines + _FEW


def _share(amounts: Iterable[float], most: float) -> float:
    """How much of each amount counts where they may add up to `most`; infinite where they do not reach it."""
    ordered = sorted(amounts)
    for place, amount in enumerate(ordered):
        even = most / (len(ordered) - place)
        if amount >= even:
            return even
        most -= amount
    return math.inf
