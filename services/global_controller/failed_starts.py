"""How long the autoscaler waits before it starts instances of a model whose starts fail.

Kept in memory: another controller begins with the first pause again. Times are monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from chiron.store import InstanceRecord
from services.global_controller.fleet import is_failed, is_ready

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0


@dataclass(slots=True)
class _Model:
    failed: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()
    in_a_row: int = 0
    until_s: float = 0.0
    why: str = ""


@dataclass(slots=True)
class FailedStarts:
    """Follows the instances of all models. Failures within a pause are one with the failure that began it."""

    first_pause_s: float = FIRST_PAUSE_S
    _models: dict[str, _Model] = field(default_factory=dict)

    def look(self, name: str, instances: Iterable[InstanceRecord], now: float) -> None:
        """Takes a model's instances in."""
        records = list(instances)
        known = self._models.setdefault(name, _Model())
        ready = frozenset(record.instance_id for record in records if is_ready(record))
        failed = {record.instance_id: record for record in records if is_failed(record)}
        if ready - known.ready:
            known.in_a_row, known.until_s = 0, now
        news = sorted(failed.keys() - known.failed)
        if news and now >= known.until_s:
            known.in_a_row += 1
            pause_s = min(LONGEST_PAUSE_S, self.first_pause_s * 2 ** (known.in_a_row - 1))
            known.until_s = now + pause_s
            record = failed[news[0]]
            known.why = f"{record.instance_id} on {record.node_id} failed: {record.observed.reason}"
        known.ready, known.failed = ready, frozenset(failed)

    def forget_others(self, names: Iterable[str]) -> None:
        """Keeps these models alone."""
        kept = set(names)
        self._models = {name: known for name, known in self._models.items() if name in kept}

    def pause(self, name: str, now: float) -> str:
        """Why none of the model is to be started now; empty: one may."""
        known = self._paused(name, now)
        if known is None:
            return ""
        starts = "the last start" if known.in_a_row == 1 else f"{known.in_a_row} starts in a row"
        verb = "has" if known.in_a_row == 1 else "have"
        return f"{starts} {verb} failed, the next one comes in {known.until_s - now:.0f} s: {known.why}"

    def last(self, name: str, now: float) -> str:
        """What failed last, while none of the model is to be started for that; else empty."""
        known = self._paused(name, now)
        return known.why if known is not None else ""

    def _paused(self, name: str, now: float) -> _Model | None:
        known = self._models.get(name)
        return known if known is not None and known.in_a_row and now < known.until_s else None
