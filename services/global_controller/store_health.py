"""How the store does, by what its members say and what writes meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from chiron.store.etcd.members import Member
from services.global_controller.pulse import Pulse

_GIVE_UP_S = 2.0
"""After a write has failed, others fail at once for as long; then one is tried again."""


class StoreState(Enum):
    """How much of the store works."""

    OK = "ok"
    DEGRADED = "degraded"
    """Everything works; an operator should look at a member."""
    READ_ONLY = "read-only"
    UNAVAILABLE = "unavailable"


class StoreHealth:
    """One process's view; used from one event loop."""

    def __init__(self, kind: str, clock: Callable[[], float]) -> None:
        """A store of which nothing bad is known.

        Args:
            kind: memory or etcd.
            clock: monotonic time in seconds.
        """
        self.kind = kind
        self.state = StoreState.OK
        self.reason = ""
        """What is wrong; empty when it is OK."""
        self.members: Sequence[Member] = ()
        self.changed = Pulse()
        """Beats when the state or the reason differs."""
        self._clock = clock
        self._since = clock()
        self._write_problem = ""
        self._failed_at = 0.0

    @property
    def age_s(self) -> float:
        """For how long it has been in this state, in seconds."""
        return self._clock() - self._since

    @property
    def refuses(self) -> str:
        """Why a write would fail now, as far as is known; empty: it may be tried."""
        if self._write_problem and self._clock() - self._failed_at < _GIVE_UP_S:
            return self._write_problem
        return ""

    @property
    def doubtful(self) -> bool:
        """Whether the last write failed and nothing that the members say explains it any more."""
        return bool(self._write_problem) and judge(self.members)[0] in (StoreState.OK, StoreState.DEGRADED)

    def look(self, members: Sequence[Member]) -> None:
        """What the members say now."""
        self.members = members
        self._judge()

    def failed(self, error: Exception) -> None:
        """A call to the store has failed."""
        self._write_problem, self._failed_at = str(error), self._clock()
        self._judge()

    def worked(self) -> None:
        """A call to the store has succeeded."""
        if self._write_problem:
            self._write_problem = ""
            self._judge()

    def _judge(self) -> None:
        state, reason = judge(self.members)
        if self._write_problem and state in (StoreState.OK, StoreState.DEGRADED):
            state, reason = StoreState.UNAVAILABLE, self._write_problem
        if state is not self.state:
            self._since = self._clock()
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self.changed.beat()


def judge(members: Sequence[Member]) -> tuple[StoreState, str]:
    """What the members' answers amount to, and why."""
    silent = [member for member in members if not member.answers]
    who = "; ".join(f"{member.endpoint}: {member.reason}" for member in silent)
    if members and len(silent) == len(members):
        return StoreState.UNAVAILABLE, f"no member of etcd answers: {who}"
    answering = [member for member in members if member.answers]
    if answering and not any(member.knows_leader for member in answering):
        reason = f"etcd has no leader: {len(answering)} of {len(members)} members answer"
        return StoreState.UNAVAILABLE, f"{reason} ({who})" if who else reason
    alarms = {alarm for member in answering for alarm in member.alarms}
    if "CORRUPT" in alarms:
        return StoreState.READ_ONLY, "etcd's members differ in what they hold (alarm CORRUPT)"
    if "NOSPACE" in alarms:
        fullest = max(member.db_bytes for member in answering) / 1e6
        return StoreState.READ_ONLY, (
            f"etcd's database has used up its quota (alarm NOSPACE, {fullest:.1f} MB): compact and "
            "defragment it, or raise --quota-backend-bytes, then `etcdctl alarm disarm`"
        )
    if silent:
        return StoreState.DEGRADED, f"{len(silent)} of {len(members)} members of etcd do not answer: {who}"
    return StoreState.OK, ""
