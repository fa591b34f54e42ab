"""Token buckets from which a large call gets its amount although small ones take what comes. Pure.

A call that is refused stands in line with its amount. Half of what comes in is saved for those in line, in
their order; the other half, and all that nobody waits for, is for whoever asks. So a call that comes again
when it is told waits no longer than twice the time in which its own amount, and those ahead of it, come in.
One that does not come again leaves the line, and what was saved for it is everybody's.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = 0.5
"""Of what comes in: so much is saved."""
_STAYS_S = 2.0
"""How long after the time that it was told a call may come again, and still has its place in line."""
_MOST = 32
"""Calls in line; one beyond takes the place of the smallest, if that is smaller."""
_NOTHING = 1e-6
"""Less than this is not missing: times are rounded."""


@dataclass(slots=True, eq=False)
class _Turn:
    """The calls of one amount that stand in line: nothing else tells whether a call has come again."""

    amount: float
    due: float
    """When it was told to come."""
    saved: float = 0.0


class Bucket:
    """Holds `capacity` and refills at `rate_per_s`. Times are monotonic seconds."""

    def __init__(self, capacity: float, rate_per_s: float, now: float) -> None:
        self.capacity, self.rate_per_s = capacity, rate_per_s
        self._level, self._at = capacity, now
        self._line: list[_Turn] = []

    def resize(self, capacity: float, rate_per_s: float, now: float) -> None:
        """Takes other limits; what was used stays used."""
        self._refill(now)
        self._level = max(0.0, self._level + capacity - self.capacity)
        self.capacity, self.rate_per_s = capacity, rate_per_s
        self._line = []

    def wait_s(self, amount: float, now: float) -> float:
        """Time until a call may take `amount`; 0: now. Who has to wait stands in line from then on."""
        self._refill(now)
        lacking = amount - self._level
        turn = None
        if self._line:
            turn = next((one for one in self._line if one.amount == amount), None)
            lacking += sum(one.saved for one in self._line if one is not turn)
        if lacking <= _NOTHING:
            return 0.0
        wait_s = lacking / self.rate_per_s
        if turn is not None:
            if now >= turn.due:
                # It has come again, and others have taken what it was told of: now it is told what is sure.
                wait_s = max(wait_s, self._sure_s(turn))
            turn.due = max(turn.due, now + wait_s)
        else:
            self._stand(_Turn(amount, now + wait_s))
        return wait_s

    def keep_place(self, amount: float, until: float) -> None:
        """A call for so much that stands in line was told by others to come at that time."""
        for turn in self._line:
            if turn.amount == amount:
                turn.due = max(turn.due, until)

    def used(self, now: float) -> float:
        """Share of the capacity that is not there; above 1 where some is owed."""
        self._refill(now)
        return 1 - self._level / self.capacity

    def take(self, amount: float) -> None:
        """Takes an amount; beyond what is there, it is owed."""
        self._level -= amount
        if self._line:
            self._line = [one for one in self._line if one.amount != amount]

    def give_back(self, amount: float) -> None:
        """Puts back what was not used."""
        self._level = min(self.capacity, self._level + amount)

    def _refill(self, now: float) -> None:
        came = max(0.0, now - self._at) * self.rate_per_s
        self._level = min(self.capacity, self._level + came)
        self._at = max(self._at, now)
        if self._line:
            self._save(came, now)

    def _save(self, came: float, now: float) -> None:
        self._line = [one for one in self._line if now <= one.due + _STAYS_S]
        left = min(_SHARE * came, self._level - sum(one.saved for one in self._line))
        for turn in self._line:
            if left <= 0:
                break
            part = min(left, turn.amount - turn.saved)
            turn.saved += part
            left -= part

    def _sure_s(self, turn: _Turn) -> float:
        """Time until all is saved for it, whatever others take."""
        until = self._line.index(turn) + 1
        lacking = sum(one.amount - one.saved for one in self._line[:until])
        return lacking / (_SHARE * self.rate_per_s)

    def _stand(self, turn: _Turn) -> None:
        if len(self._line) >= _MOST:
            smallest = min(self._line, key=lambda one: one.amount)
            if smallest.amount >= turn.amount:
                return
            self._line.remove(smallest)
        self._line.append(turn)
