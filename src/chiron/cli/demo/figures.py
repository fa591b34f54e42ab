"""What a demo run measures, at the client. Pure: times are arguments."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class ClassCount:
    """Requests of one class, by how they ended."""

    requests: int = 0
    """Sent."""
    finished: int = 0
    failed: int = 0
    """Ended with an error, interrupted streams included."""
    interrupted: int = 0
    """Cut after their first token, and not resumed."""
    resumed: int = 0
    """Cut after their first token, and went on elsewhere."""
    retried: int = 0
    """Needed more than one attempt."""
    shed: int = 0
    """Not sent, because too many were outstanding already."""

    @property
    def outstanding(self) -> int:
        """Sent and not ended."""
        return self.requests - self.finished - self.failed


class Figures:
    """Counts per class, and latencies over both."""

    def __init__(self) -> None:
        self.counts = {"interactive": ClassCount(), "batch": ClassCount()}
        self.ttft_ms = {"interactive": array("d"), "batch": array("d")}
        """From a request's arrival to its first token at the client, in milliseconds."""
        self.itl_ms = array("d")
        """For each token after the first of its stream, the time since the one before, in milliseconds.
        Tokens that travel together share the time since the last delivery evenly."""
        self.tokens = 0
        """Output tokens delivered."""
        self.errors: list[str] = []
        """Failures, interrupted streams included; the first hundred."""

    def failure(self, text: str) -> None:
        """Keeps the text of a failure."""
        if len(self.errors) < 100:
            self.errors.append(text)

    def total(self, field: str) -> int:
        """A count over both classes."""
        return sum(getattr(count, field) for count in self.counts.values())

    def summary(self, duration_s: float) -> dict[str, object]:
        """The figures of the JSON line; latencies in milliseconds."""
        ttft = [*self.ttft_ms["interactive"], *self.ttft_ms["batch"]]
        return {
            "requests": self.total("requests"),
            "failed": self.total("failed"),
            "interrupted": self.total("interrupted"),
            "resumed": self.total("resumed"),
            "retried": self.total("retried"),
            "shed": self.total("shed"),
            "ttft_p50_ms": percentile(ttft, 50),
            "ttft_p99_ms": percentile(ttft, 99),
            "itl_p50_ms": percentile(self.itl_ms, 50),
            "itl_p99_ms": percentile(self.itl_ms, 99),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens / duration_s, 1) if duration_s > 0 else None,
            "duration_s": round(duration_s, 2),
            **{
                kind: {
                    **asdict(count),
                    "ttft_p50_ms": percentile(self.ttft_ms[kind], 50),
                    "ttft_p99_ms": percentile(self.ttft_ms[kind], 99),
                }
                for kind, count in self.counts.items()
            },
        }


class StreamMeter:
    """Times one stream's tokens into the figures."""

    def __init__(self, figures: Figures, kind: str, arrived: float) -> None:
        """`arrived` is the request's arrival, in seconds on any clock that `delivered` shares."""
        self._figures = figures
        self._kind = kind
        self._last = arrived
        self.tokens = 0
        """Delivered on this stream."""

    def delivered(self, tokens: int, now: float) -> None:
        """Counts the tokens of a chunk that came `now`; a chunk without tokens changes nothing."""
        if not tokens:
            return
        gap_ms = (now - self._last) * 1000
        if self.tokens:
            self._figures.itl_ms.extend([gap_ms / tokens] * tokens)
        else:
            self._figures.ttft_ms[self._kind].append(gap_ms)
        self._last = now
        self.tokens += tokens
        self._figures.tokens += tokens


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile, rounded to 10 µs; None of no values."""
    if not values:
        return None
    rank = max(1, math.ceil(percent / 100 * len(values)))
    return round(sorted(values)[rank - 1], 2)
