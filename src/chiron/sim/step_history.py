"""Each engine's steps, for the longest times between one request's tokens and their 99th percentile."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chiron.sim.gaps import longest_between

if TYPE_CHECKING:
    from chiron.sim.ledger import Ledger

REQUESTS = 4000
"""About so many requests of a run are looked at for the percentile: every so-manieth by index."""
_TOP_SHARE = 0.01

Taken = tuple[float, float, int, int, bool, float]
"""Steps of one engine: when they end, seconds together, their number, decode positions, whether slots were
taken or requests waited, and the factor on their time."""


class StepHistory:
    """The steps of one engine, runs of steps as one, and the requests that finished there."""

    __slots__ = (
        "durations_s",
        "ends_s",
        "factors",
        "finished",
        "kv_read_s",
        "moved",
        "pending",
        "positions",
        "steps",
    )

    def __init__(self, kv_read_s: float) -> None:
        self.pending: list[Taken] = []
        """Those since the last take()."""
        self.finished = array("q")
        """Requests whose last token came from here."""
        self.moved: list[tuple[int, float, float]] = []
        """Requests that went on elsewhere: since when and until when this engine made their tokens."""
        self.kv_read_s = kv_read_s
        self.ends_s = array("d")
        self.durations_s = array("d")
        self.steps = array("i")
        self.positions = array("q")
        self.factors = array("d")

    def take(self) -> list[Taken]:
        """Put what is pending on record and return it."""
        taken = self.pending.copy()
        self.pending.clear()
        if taken:
            ends_s, durations_s, steps, positions, _, factors = zip(*taken, strict=True)
            self.ends_s.extend(ends_s)
            self.durations_s.extend(durations_s)
            self.steps.extend(steps)
            self.positions.extend(positions)
            self.factors.extend(factors)
        return taken

    def longest_since(self, moment_s: float) -> float:
        """The longest step that ended after a moment; looks at all, for the rare case."""
        self.take()
        table = _Table(self)
        return float(table.longest_s[table.ends_s > moment_s].max(initial=0.0))


Stretch = tuple[int, StepHistory]
"""A request, and the steps of the engine that finished it."""


def note_longest_gaps(ledger: Ledger) -> list[Stretch]:
    """Put the longest step into the record of each interactive request that has finished.

    Steps lengthen evenly along a run with the KV tokens that they read. Return those of these requests whose
    percentile is looked at.
    """
    looked_at = []
    is_batch = np.frombuffer(ledger.is_batch, dtype=np.uint8)
    first_token_s = np.frombuffer(ledger.first_token_s, dtype=np.float64)
    finish_s = np.frombuffer(ledger.finish_s, dtype=np.float64)
    longest_gap_s = np.frombuffer(ledger.longest_gap_s, dtype=np.float64)
    for history in ledger.histories:
        history.take()
        requests = np.array(history.finished, dtype=np.int64)
        requests = requests[is_batch[requests] == 0]
        table = _Table(history)
        since_s, until_s, served = first_token_s[requests], finish_s[requests], requests
        if ledger.came_s:
            since_s = np.array([ledger.came_s.get(int(each), first_token_s[each]) for each in requests])
            moved = [each for each in history.moved if not is_batch[each[0]]]
            if moved:
                ids, begun_s, left_s = zip(*moved, strict=True)
                served = np.append(requests, np.array(ids, dtype=np.int64))
                since_s, until_s = np.append(since_s, begun_s), np.append(until_s, left_s)
        first = np.searchsorted(table.ends_s, since_s, side="right")
        last = np.searchsorted(table.ends_s, until_s, side="right")
        # A request may have been here more than once.
        np.maximum.at(longest_gap_s, served, longest_between(table.longest_s, first, last))
        looked_at += [
            (int(request_id), history) for request_id in requests[requests % ledger.look_every == 0]
        ]
    return looked_at


def p99_itl_s(stretches: Sequence[Stretch], ledger: Ledger) -> NDArray[np.float64]:
    """The 99th percentile of the times between its tokens, of each of these requests that finished.

    Steps of one run count with their mean: they differ by the KV tokens read in between. Tokens that a step
    makes beyond its first follow it at once. Of a request that lost its slot count the steps since it got
    one back for the last time, and its longest gap.
    """
    tables: dict[int, _Table] = {}
    found = np.zeros(len(stretches))
    for number, (request_id, history) in enumerate(stretches):
        # So many intervals may be longer than the percentile.
        above = int(_TOP_SHARE * (ledger.output_tokens[request_id] - 1))
        since_s = ledger.resumed_s.get(request_id)
        if since_s is None:
            since_s = ledger.first_token_s[request_id]
            exact = above == 0
        else:
            above -= 1
            exact = above < 0
        if exact:
            found[number] = ledger.longest_gap_s[request_id]
            continue
        table = tables.get(id(history))
        if table is None:
            table = tables[id(history)] = _Table(history)
        found[number] = table.exceeded_by(above, since_s, ledger.finish_s[request_id])
    return found


class _Table:
    """The steps of a history in which it decoded, as arrays."""

    def __init__(self, history: StepHistory) -> None:
        positions = np.array(history.positions)
        decoding = positions > 0
        positions = positions[decoding]
        steps = np.array(history.steps)[decoding]
        factors = np.array(history.factors)[decoding]
        self._durations_s = np.array(history.durations_s)[decoding] / steps
        self._steps = steps
        self.ends_s = np.array(history.ends_s)[decoding]
        bend_s = history.kv_read_s * positions / steps * factors * (steps - 1) / 2
        self.longest_s = self._durations_s + bend_s

    def exceeded_by(self, steps: int, since_s: float, until_s: float) -> float:
        """The least duration that no more than so many of the steps between two moments exceed; 0: none."""
        first, last = np.searchsorted(self.ends_s, (since_s, until_s), side="right")
        durations_s = self._durations_s[first:last]
        order = np.argsort(-durations_s, kind="stable")
        counted = np.cumsum(self._steps[first:last][order])
        at = int(np.searchsorted(counted, steps, side="right"))
        return float(durations_s[order[at]]) if at < len(order) else 0.0
