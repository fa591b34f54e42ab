"""The decisions of a controller: recorded, followed, kept for those who watch, and looked up."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from chiron.store import (
    DecisionRecord,
    Outcome,
    RefusedError,
    Snapshot,
    TooLargeError,
    UnavailableError,
)
from services.global_controller.decisions.around import Surroundings
from services.global_controller.decisions.follower import Follower
from services.global_controller.decisions.recorder import Recorder
from services.global_controller.decisions.traces import DecisionTraces
from services.global_controller.pulse import Pulse
from services.global_controller.registry import AgentLink
from services.global_controller.writer import Draft

if TYPE_CHECKING:
    from services.global_controller.controller import Controller

MOST_AT_ONCE = 500
"""Decisions in one page."""
MOST_FOLLOWING = 100
_RECENT = 500
_WRITTEN_AT_ONCE = 64
_WRITE_EVERY_S = 5.0
"""Shortest time between two commits of outcomes, in seconds."""
_SUMMED_FOR_S = 0.5
"""How long what surrounds an instance counts as known, in seconds: hundreds of nodes report each second."""
_log = logging.getLogger(__name__)


class DecisionBook:
    """What one reign knows of decisions."""

    def __init__(self, controller: Controller, clock: Callable[[], float]) -> None:
        """Empty until `load`."""
        self._controller = controller
        self._clock = clock
        traces = DecisionTraces()
        self.recorder = Recorder(controller.registry, traces)
        self.follower = Follower(clock, on_progress=traces.progress)
        self._recent: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._versions: dict[str, int] = {}
        self._version = 0
        self._told = Pulse()
        self._ended = False
        self._surroundings: Surroundings | None = None
        self._summed_s = -math.inf

    async def load(self, term: int) -> None:
        """Takes up what earlier reigns have left. Raises what the store raises."""
        self.recorder.term = term
        kept = await self._controller.store.decisions(limit=self._controller.config.decisions_kept)
        oldest_first = list(reversed(kept))
        self.recorder.note(oldest_first)
        self.follower.resume(oldest_first)
        self._keep(oldest_first)

    def decided(self, decisions: Sequence[DecisionRecord]) -> None:
        """These are in the store now."""
        self.recorder.written(decisions)
        self._keep(decisions)
        self.follower.decided(decisions)

    def shown(self, decision: DecisionRecord) -> DecisionRecord:
        """The decision with its outcome as it stands now."""
        outcome = self.follower.outcome(decision)
        return decision if outcome == decision.outcome else dataclasses.replace(decision, outcome=outcome)

    async def page(
        self, *, limit: int, model: str = "", since_s: float = 0.0, before: str = ""
    ) -> list[DecisionRecord]:
        """The newest first; see ListDecisionsRequest. Raises KeyError when `before` is not kept."""
        kept = await self._all()
        if before:
            ids = [one.decision_id for one in kept]
            if before not in ids:
                raise KeyError(before)
            kept = kept[ids.index(before) + 1 :]
        oldest_ms = time.time_ns() / 1e6 - since_s * 1e3 if since_s else -math.inf
        wanted = (one for one in kept if (not model or one.model == model) and one.time_unix_ms >= oldest_ms)
        return [self.shown(one) for one, _ in zip(wanted, range(limit), strict=False)]

    async def one(
        self, decision_id: str
    ) -> tuple[DecisionRecord, list[DecisionRecord], list[DecisionRecord]] | None:
        """A decision (the newest, where no id is given), what led to it and what followed; None: not kept."""
        kept = await self._all()
        by_id = {one.decision_id: one for one in kept}
        decision = by_id.get(decision_id) if decision_id else next(iter(kept), None)
        if decision is None:
            return None
        causes: list[DecisionRecord] = []
        seen = {decision.decision_id}
        at = decision
        while (cause := by_id.get(at.cause)) is not None and cause.decision_id not in seen:
            seen.add(cause.decision_id)
            causes.insert(0, cause)
            at = cause
        followed = [one for one in reversed(kept) if one.cause == decision.decision_id]
        return (
            self.shown(decision),
            [self.shown(one) for one in causes],
            [self.shown(one) for one in followed[:MOST_FOLLOWING]],
        )

    async def watch(self, newest: int, model: str = "") -> AsyncIterator[DecisionRecord]:
        """See WatchDecisions. Ends when the controller closes."""
        mine = [one for one in self._recent.values() if not model or one.model == model]
        mine = mine[-newest:] if newest else []
        seen = self._version
        for one in mine:
            yield self.shown(one)
        while not self._ended:
            count = self._told.count
            changed = sorted((version, key) for key, version in self._versions.items() if version > seen)
            for version, key in changed:
                seen = version
                known = self._recent.get(key)
                if known is not None and (not model or known.model == model):
                    yield self.shown(known)
            await self._told.after(count)

    def look(self, link: AgentLink | None = None, *, published: bool = False) -> None:
        """Sees what has come of open decisions.

        Args:
            link: of a node that has just reported: only its instances are looked at; None: all are.
            published: routers have just been told of all there is.
        """
        if not self.follower.open_count:
            return
        controller, registry = self._controller, self._controller.registry
        snapshot, now = controller.snapshot, self._clock()
        if self._surroundings is None or now - self._summed_s >= _SUMMED_FOR_S:
            reports = [router.report for router in registry.routers.values()]
            self._summed_s = now
            self._surroundings = Surroundings(
                snapshot.instances.values(),
                registry.statuses(),
                reports,
                self._load_time_s,
            )
        self.follower.see(
            snapshot.instances,
            link.statuses if link is not None else registry.statuses(),
            routed=published and bool(registry.routers),
            around=self._surroundings.of,
            only=None if link is None else link.statuses,
        )
        self._tell_changes()

    def _load_time_s(self, name: str) -> float:
        model = self._controller.snapshot.models.get(name)
        if model is None:
            return self._controller.config.presumed_load_time_s
        return self._controller.fleet.expected(model).load_time_s

    def close(self) -> None:
        """Ends every watch."""
        self._ended = True
        self._told.beat()

    async def run(self) -> None:
        """Writes outcomes as they change, never more often than every few seconds; looks when time is due."""
        seen = 0
        while True:
            due = self.follower.due()
            wait_s = None if due == math.inf else max(0.05, due - self._clock() + 0.01)
            try:
                async with asyncio.timeout(wait_s):
                    seen = await self.follower.changed.after(seen)
            except TimeoutError:
                self.look()
                if self.follower.due() <= self._clock():
                    # What is due waits for a report of its node.
                    await asyncio.sleep(1.0)
                continue
            await asyncio.sleep(_WRITE_EVERY_S)
            seen = self.follower.changed.count
            await self._write()

    def _tell_changes(self) -> None:
        """Outcomes may have changed: those who watch hear of it."""
        for key, outcome in self.follower.take_news().items():
            known = self._recent.get(key)
            if known is not None and known.outcome != outcome:
                self._keep([dataclasses.replace(known, outcome=outcome)])

    async def _write(self) -> None:
        most = _WRITTEN_AT_ONCE
        while outcomes := self.follower.unwritten(most):
            try:
                await self._controller.write(_drafting(outcomes))
            except TooLargeError:
                if most == 1:
                    _log.warning("the outcome of %s is more than the store takes", next(iter(outcomes)))
                    self.follower.written(outcomes)
                most = max(1, most // 2)
            except (UnavailableError, RefusedError) as error:
                _log.info("outcomes are written later: %s", error)
                return
            else:
                self.follower.written(outcomes)

    async def _all(self) -> list[DecisionRecord]:
        return list(await self._controller.store.decisions(limit=self._controller.config.decisions_kept))

    def _keep(self, decisions: Sequence[DecisionRecord]) -> None:
        for one in decisions:
            self._version += 1
            self._recent[one.decision_id] = one
            self._versions[one.decision_id] = self._version
        while len(self._recent) > _RECENT:
            gone, _ = self._recent.popitem(last=False)
            del self._versions[gone]
        if decisions:
            self._told.beat()


def _drafting(outcomes: Mapping[str, Outcome]) -> Callable[[Snapshot], Draft]:
    return lambda _: Draft(outcomes=outcomes)
