"""What a demo run measures, at the client. Pure: times are arguments."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Interactive:
    """What became of the interactive requests."""

    ttft_slo_ms: float
    itl_slo_ms: float
    requests: int = 0
    """Sent."""
    finished: int = 0
    failed: int = 0
    """Ended with an error, interrupted streams included."""
    met: int = 0
    """Finished with a TTFT and a mean ITL within their SLOs."""
    resumed: int = 0
    """Cut after their first token, and went on elsewhere."""
    retried: int = 0
    """Needed more than one attempt."""
    ttft_ms: array[float] = field(default_factory=lambda: array("d"))
    """From each request's planned arrival to its first token at the client, in milliseconds."""
    itl_ms: array[float] = field(default_factory=lambda: array("d"))
    """Each request's mean time between tokens as they arrived at the client, in milliseconds."""

    @property
    def outstanding(self) -> int:
        """Sent and not ended."""
        return self.requests - self.finished - self.failed

    @property
    def attainment(self) -> float | None:
        """Share of all that were sent which met their SLOs; None of none."""
        return self.met / self.requests if self.requests else None

    def finish(self, ttft_ms: float, itl_mean_ms: float) -> None:
        """Counts a request that was answered whole."""
        self.finished += 1
        self.met += ttft_ms <= self.ttft_slo_ms and itl_mean_ms <= self.itl_slo_ms
        self.ttft_ms.append(ttft_ms)
        self.itl_ms.append(itl_mean_ms)


@dataclass(slots=True)
class Batches:
    """What became of the batches' items."""

    items: int = 0
    """Handed in."""
    succeeded: int = 0
    failed: int = 0
    """Ended in another way."""
    late: int = 0
    """Of those that succeeded: recorded after the deadline."""

    @property
    def deadlines_met(self) -> float | None:
        """Share of the items whose result was there by their deadline; None of none."""
        return (self.succeeded - self.late) / self.items if self.items else None


class Figures:
    """All that is measured."""

    def __init__(self, *, ttft_slo_ms: float, itl_slo_ms: float) -> None:
        self.interactive = Interactive(ttft_slo_ms, itl_slo_ms)
        self.batches = Batches()
        self.tokens = 0
        """Output tokens delivered to interactive readers."""
        self.errors: list[str] = []
        """Failures; the first hundred."""

    def failure(self, text: str) -> None:
        """Keeps the text of a failure."""
        if len(self.errors) < 100:
            self.errors.append(text)

    def summary(self) -> dict[str, object]:
        """The client's part of the JSON line; latencies in milliseconds."""
        interactive, batches = self.interactive, self.batches
        return {
            "interactive_attainment": _rounded(interactive.attainment),
            "batch_deadlines_met": _rounded(batches.deadlines_met),
            "failed": interactive.failed + batches.failed,
            "resumed": interactive.resumed,
            "retried": interactive.retried,
            "requests": interactive.requests,
            "batch_items": batches.items,
            "ttft_p50_ms": percentile(interactive.ttft_ms, 50),
            "ttft_p99_ms": percentile(interactive.ttft_ms, 99),
            "itl_p50_ms": percentile(interactive.itl_ms, 50),
            "itl_p99_ms": percentile(interactive.itl_ms, 99),
            "ttft_slo_ms": interactive.ttft_slo_ms,
            "itl_slo_ms": interactive.itl_slo_ms,
            "tokens": self.tokens,
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile, rounded to 10 µs; None of no values."""
    if not values:
        return None
    rank = max(1, math.ceil(percent / 100 * len(values)))
    return round(sorted(values)[rank - 1], 2)


def _rounded(share: float | None) -> float | None:
    # Downwards, so that a goal that was missed never reads as met.
    return None if share is None else math.floor(share * 1e4) / 1e4
