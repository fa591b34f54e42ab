"""What a model's record keeps of the versions of its spec, and of the replacement of one by another."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class SpecVersion:
    """One version of a model's spec. A version never changes; the model points at one of them."""

    spec: bytes
    """The normalised ModelSpec, serialised."""
    spec_version: int
    rollout_version: int
    """The version whose workers serve this spec; see ModelRecord."""
    applied_unix_ms: int = 0
    """Wall clock, for people; nothing is computed from it."""

    def parsed_spec(self) -> cluster_pb2.ModelSpec:
        """A ModelSpec of the caller's own."""
        return cluster_pb2.ModelSpec.FromString(self.spec)


@dataclass(frozen=True, slots=True)
class Roll:
    """The replacement of a model's instances by those of another version."""

    number: int = 0
    """Counts the model's rolls; instances carry the number of the roll that placed them."""
    state: cluster_pb2.RollState.ValueType = cluster_pb2.ROLL_STATE_UNSPECIFIED
    from_version: int = 0
    """The spec version before; 0: not known."""
    to_version: int = 0
    rollback_on_failure: bool = False
    """Whether a failure leads back to from_version by itself."""
    reason: str = ""
    """Why it stalled, or why it went back."""

    @property
    def rolling(self) -> bool:
        """Whether it is under way."""
        return self.state == cluster_pb2.ROLL_STATE_ROLLING

    @property
    def stalled(self) -> bool:
        """Whether it has stopped because the new version failed."""
        return self.state == cluster_pb2.ROLL_STATE_STALLED

    @property
    def active(self) -> bool:
        """Whether instances of another version may still be there because of it."""
        return self.rolling or self.stalled
