"""Follows the decisions whose outcome is open, and says which outcomes are to be written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from chiron.store import DecisionRecord, InstanceRecord, Outcome
from chiron.v1 import cluster_pb2
from services.global_controller.decisions.outcomes import Followed, Sight
from services.global_controller.pulse import Pulse

MOST_OPEN = 1000
"""Decisions that are followed at a time; the oldest are let go."""


class Around(NamedTuple):
    """What an instance's model needs wherever else it could be done."""

    requests: float
    other_slots: float
    load_time_s: float


class Follower:
    """Every open decision of this reign and of those before. Times are the controller's monotonic clock."""

    def __init__(
        self,
        clock: Callable[[], float],
        wall_ms: Callable[[], int] | None = None,
        on_progress: Callable[[DecisionRecord, Outcome, int], None] = lambda decision, outcome, told: None,
    ) -> None:
        """Follows nothing yet.

        Args:
            clock: monotonic time in seconds.
            on_progress: called with a decision, what has come of it, and how many of its milestones were
                reached when it was called last.
            wall_ms: wall clock in milliseconds, for decisions of an earlier reign; None: the system's.
        """
        self._clock = clock
        self._wall_ms = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._on_progress = on_progress
        self._told: dict[str, int] = {}
        self._open: dict[str, Followed] = {}
        self._made_s: dict[str, float] = {}
        self._of_instance: dict[str, list[str]] = {}
        self._of_model: dict[str, dict[str, Followed]] = {}
        """Model → the open decisions about its instances, the oldest first."""
        self._unwritten: dict[str, Outcome] = {}
        self._news: dict[str, Outcome] = {}
        self.changed = Pulse()
        """Beats when an outcome has changed."""

    def resume(self, decisions: Iterable[DecisionRecord]) -> None:
        """Goes on with what an earlier reign has left open; the oldest first."""
        now, wall_ms = self._clock(), self._wall_ms()
        for decision in decisions:
            if decision.outcome is not None and decision.outcome.is_open:
                self._follow(decision, now - max(0.0, (wall_ms - decision.time_unix_ms) / 1e3))

    def decided(self, decisions: Iterable[DecisionRecord]) -> None:
        """These have just been written."""
        now = self._clock()
        for decision in decisions:
            if decision.outcome is None:
                continue
            # What a decision undoes or overtakes is about the same instance, or one of the same model.
            for key, followed in list(self._of_model.get(decision.model, {}).items()):
                if followed.meet(decision, now - self._made_s[key]):
                    self._note(key, followed)
            self._follow(decision, now)

    def sent(self, records: Iterable[InstanceRecord]) -> None:
        """A node's agent is being told of these."""
        if not self._open:
            return
        now = self._clock()
        for record in records:
            for key in list(self._of_instance.get(record.instance_id, ())):
                if self._open[key].sent(record.generation, now - self._made_s[key]):
                    self._note(key, self._open[key])

    def see(
        self,
        records: Mapping[str, InstanceRecord],
        statuses: Mapping[str, cluster_pb2.InstanceStatus],
        routed: bool,
        around: Callable[[InstanceRecord], Around],
        only: Iterable[str] | None = None,
    ) -> None:
        """Looks at what is followed.

        Args:
            records: the instances on record.
            statuses: the last report of each.
            routed: whether routers have just been told of all there is.
            around: what its model needs elsewhere; asked for those that serve.
            only: the instances to look at; None: all.
        """
        if not self._open:
            return
        now = self._clock()
        keys = (
            list(self._open)
            if only is None
            else [key for one in only for key in self._of_instance.get(one, ())]
        )
        for key in keys:
            followed = self._open[key]
            instance_id = followed.decision.instance_id
            record = records.get(instance_id)
            model = around(record) if record is not None else Around(0.0, 0.0, 30.0)
            sight = Sight(
                after_s=now - self._made_s[key],
                record=record,
                status=statuses.get(instance_id),
                routed=routed,
                requests=model.requests,
                other_slots=model.other_slots,
                load_time_s=model.load_time_s,
            )
            if followed.see(sight):
                self._note(key, followed)

    @property
    def open_count(self) -> int:
        """Decisions that are followed."""
        return len(self._open)

    def due(self) -> float:
        """When something ends by the passing of time alone; monotonic, in seconds, inf: nothing does."""
        return min(
            (self._made_s[key] + one.watched_until_s for key, one in self._open.items()), default=math.inf
        )

    def outcome(self, decision: DecisionRecord) -> Outcome | None:
        """What has come of a decision so far, also where that is not written yet."""
        if (followed := self._open.get(decision.decision_id)) is not None:
            return followed.outcome
        return self._unwritten.get(decision.decision_id, decision.outcome)

    def unwritten(self, most: int) -> Mapping[str, Outcome]:
        """Outcomes that have changed since they were written, at most so many."""
        return dict(list(self._unwritten.items())[:most])

    def take_news(self) -> Mapping[str, Outcome]:
        """Outcomes that have changed since this was last called."""
        news, self._news = self._news, {}
        return news

    def written(self, outcomes: Mapping[str, Outcome]) -> None:
        """These are in the store, or can never be."""
        for key, outcome in outcomes.items():
            if self._unwritten.get(key) == outcome:
                del self._unwritten[key]

    def trace_parent(self, instance_id: str) -> str:
        """W3C context of the newest open decision about the instance; empty: there is none."""
        keys = self._of_instance.get(instance_id, ())
        return self._open[keys[-1]].decision.trace_parent if keys else ""

    def _follow(self, decision: DecisionRecord, made_s: float) -> None:
        if decision.outcome is None:
            return
        key = decision.decision_id
        self._open[key] = followed = Followed(decision, decision.outcome)
        self._of_model.setdefault(decision.model, {})[key] = followed
        self._made_s[key] = made_s
        self._told[key] = len(decision.outcome.milestones)
        self._of_instance.setdefault(decision.instance_id, []).append(key)
        while len(self._open) > MOST_OPEN:
            self._let_go(next(iter(self._open)))

    def _note(self, key: str, followed: Followed) -> None:
        self._unwritten[key] = self._news[key] = followed.outcome
        self._on_progress(followed.decision, followed.outcome, self._told[key])
        self._told[key] = len(followed.outcome.milestones)
        if not followed.outcome.is_open:
            self._let_go(key)
        self.changed.beat()

    def _let_go(self, key: str) -> None:
        followed = self._open.pop(key)
        del self._made_s[key], self._told[key]
        of_model = self._of_model[followed.decision.model]
        del of_model[key]
        if not of_model:
            del self._of_model[followed.decision.model]
        keys = self._of_instance[followed.decision.instance_id]
        keys.remove(key)
        if not keys:
            del self._of_instance[followed.decision.instance_id]
