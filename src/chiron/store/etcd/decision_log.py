"""The log of decisions below one prefix: read from the newest, and found by id."""

from __future__ import annotations

from collections.abc import Iterable

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.decisions import DecisionRecord, Outcome
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.keys import Keys
from chiron.store.etcd.methods import RANGE
from chiron.store.etcd.values import decode_decisions, decode_outcomes


class DecisionLog:
    """Remembers at which number each decision lies; used by the one writer and by readers."""

    def __init__(self, connection: Connection, keys: Keys, *, kept: int, page_size: int) -> None:
        """Reads `page_size` keys at a time, and no more than `kept` decisions."""
        self.kept = kept
        self._connection = connection
        self._keys = keys
        self._page_size = page_size
        self._numbers: dict[str, int] = {}
        """Decision id → number of the last decision of its transaction, the oldest first."""

    async def newest(self, limit: int, model: str = "") -> list[DecisionRecord]:
        """The newest decisions first, with their outcomes; of one model where one is given."""
        found: list[DecisionRecord] = []
        later: dict[str, Outcome] = {}
        seen, end = 0, self._keys.decisions_end
        while len(found) < limit and seen < self.kept:
            request = pb.RangeRequest(
                key=self._keys.decisions(0),
                range_end=end,
                limit=self._page_size,
                sort_order=pb.SORT_ORDER_DESCEND,
            )
            answer = await self._connection.call(RANGE, request, repeatable=True)
            for kv in answer.kvs:
                number, outcomes = self._keys.logged_at(kv.key)
                if outcomes:
                    # Its decisions come next.
                    later = decode_outcomes(kv.key, kv.value)
                    continue
                decisions = decode_decisions(kv.key, kv.value, later)
                later = {}
                for one in reversed(decisions):
                    seen += 1
                    self._numbers.setdefault(one.decision_id, number)
                    if seen <= self.kept and (not model or one.model == model):
                        found.append(one)
            if not answer.more:
                break
            end = answer.kvs[-1].key
        return found[:limit]

    async def locate(self, decision_ids: Iterable[str]) -> dict[str, int]:
        """Where those decisions lie that are kept; reads the log where it does not know one."""
        wanted = list(decision_ids)
        if any(one not in self._numbers for one in wanted):
            await self.newest(self.kept)
        return {one: self._numbers[one] for one in wanted if one in self._numbers}

    def logged(self, decisions: Iterable[DecisionRecord], number: int) -> None:
        """A transaction is about to log these, the last of them under `number`."""
        for one in decisions:
            self._numbers[one.decision_id] = number
        if len(self._numbers) > 2 * self.kept:
            oldest = number - self.kept
            self._numbers = {key: at for key, at in self._numbers.items() if at > oldest}
