"""Each engine's steps, for the 99th percentile of the times between one request's tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from chiron.sim.ledger import Ledger

REQUESTS = 4000
"""About so many requests of a run are looked at: every so-manieth by index."""
_TOP_SHARE = 0.01


class StepHistory:
    """The steps of one engine in which it decoded: runs of steps by their end, number and mean duration."""

    __slots__ = ("durations_s", "ends_s", "steps")

    def __init__(self) -> None:
        self.ends_s = array("d")
        self.durations_s = array("d")
        self.steps = array("i")


Stretch = tuple[int, StepHistory]
"""A request, and the steps of the engine that finished it."""


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
    """A history as arrays."""

    def __init__(self, history: StepHistory) -> None:
        self._ends_s = np.frombuffer(history.ends_s, dtype=np.float64)
        self._durations_s = np.frombuffer(history.durations_s, dtype=np.float64)
        self._steps = np.frombuffer(history.steps, dtype=np.int32)

    def exceeded_by(self, steps: int, since_s: float, until_s: float) -> float:
        """The least duration that no more than so many of the steps between two moments exceed; 0: none."""
        first, last = np.searchsorted(self._ends_s, (since_s, until_s), side="right")
        durations_s = self._durations_s[first:last]
        order = np.argsort(-durations_s, kind="stable")
        counted = np.cumsum(self._steps[first:last][order])
        at = int(np.searchsorted(counted, steps, side="right"))
        return float(durations_s[order[at]]) if at < len(order) else 0.0
