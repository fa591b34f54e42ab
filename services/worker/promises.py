"""What a request was promised, and whether its answer kept that. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.v1 import cluster_pb2, types_pb2
from services.worker.pace import Pace


@dataclass(frozen=True, slots=True)
class Promise:
    """The SLO of one request; 0 for what it leaves open."""

    batch: bool = False
    """Class: batch, else interactive."""
    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    deadline_s: float = 0.0
    """Of a batch request alone, from its arrival at the first door, in seconds."""

    @classmethod
    def of(cls, settled: types_pb2.Slo, deadline_s: float, *, batch: bool) -> Promise:
        """What counts for the class.

        Args:
            settled: the SLO with the model's defaults.
            deadline_s: as the router has it; 0: none, or that of a batch whose queue counts for itself.
            batch: the class.
        """
        if batch:
            return cls(batch=True, deadline_s=deadline_s)
        return cls(ttft_ms=settled.ttft_ms, itl_ms=settled.itl_ms)

    @property
    def given(self) -> bool:
        """Whether there is anything to keep."""
        return self.deadline_s > 0 if self.batch else self.ttft_ms > 0 or self.itl_ms > 0

    def count(self, pace: Pace, sums: cluster_pb2.FinishedRequests) -> None:
        """Adds an answer that is whole to the sums of its class."""
        if not self.given:
            return
        sums.with_slo += 1
        if self.batch:
            sums.slo_met += pace.since_door_ms <= 1e3 * self.deadline_s
            return
        ttft_met = not self.ttft_ms or pace.ttft_ms <= self.ttft_ms
        itl_met = not self.itl_ms or pace.whole_itl_ms <= self.itl_ms
        sums.ttft_met += ttft_met
        sums.itl_met += itl_met
        sums.slo_met += ttft_met and itl_met

    def given_up_late(self, since_door_ms: float) -> bool:
        """Whether a caller that leaves without a token leaves because it has waited too long already."""
        return 0 < self.ttft_ms < since_door_ms


NO_PROMISE = Promise()
