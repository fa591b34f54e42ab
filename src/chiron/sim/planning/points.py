"""What several seeds found with the same hardware, and the curve that such points make."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiron.sim.compare import Spread
from chiron.sim.planning.trial import Attempt, Misses


@dataclass(frozen=True, slots=True)
class Point:
    """The same hardware on every seed."""

    gpus: int
    attempts: tuple[Attempt, ...]

    @property
    def attains(self) -> bool:
        """On every seed."""
        return all(attempt.attains for attempt in self.attempts)

    @property
    def attaining(self) -> int:
        """Seeds on which it attains."""
        return sum(attempt.attains for attempt in self.attempts)

    def spread(self, figure: str) -> Spread | None:
        """Of a figure of `Attempt` over the seeds."""
        return Spread.of(getattr(attempt, figure) for attempt in self.attempts)

    def mean(self, figure: str) -> float:
        """Of a figure over the seeds that have it; 0 when none has."""
        spread = self.spread(figure)
        return 0.0 if spread is None else spread.mean

    @property
    def misses(self) -> Misses:
        """Means over the seeds."""
        return Misses(
            *(
                sum(getattr(attempt.misses, name) for attempt in self.attempts) / len(self.attempts)
                for name in Misses.__slots__
            )
        )


@dataclass(slots=True)
class Curve:
    """Points by GPUs, as they are found."""

    points: dict[int, Point] = field(default_factory=dict)

    @property
    def in_order(self) -> list[Point]:
        """From the fewest GPUs to the most."""
        return [self.points[gpus] for gpus in sorted(self.points)]

    @property
    def best(self) -> Point:
        """The one that met most in the mean; of equals the one with the fewest GPUs."""
        return max(
            self.in_order, key=lambda point: (point.mean("interactive"), point.mean("batch"), -point.gpus)
        )
