"""Local autoscalers that make mistakes, as `module:Class`."""

from __future__ import annotations

from typing import Never

from chiron.policy.decisions import Limits
from chiron.policy.snapshots import InstanceSample


class RaisesAfterOne:
    """Decides once: half the batch size; raises from then on."""

    def __init__(self) -> None:
        self._decided = False

    def decide(self, sample: InstanceSample) -> Limits:
        if self._decided:
            raise RuntimeError("I have lost my way")
        self._decided = True
        half = max(1, sample.batch_size // 2)
        return Limits(half, sample.step_token_budget, half, "the first one")


class Unmakeable:
    """Cannot even be made."""

    def __init__(self) -> None:
        raise RuntimeError("no constructor")

    def decide(self, sample: InstanceSample) -> Limits:
        raise AssertionError("never made")


class Talkative:
    """Gives more figures and a longer reason than anybody wants to read."""

    def decide(self, sample: InstanceSample) -> Limits:
        numbers = {f"number-{index}": float(index) for index in range(1000)}
        return Limits(sample.batch_size, sample.step_token_budget, 1, "why " * 1000, numbers)


class Unspeakable:
    """Answers with something that breaks whoever looks at it."""

    def decide(self, sample: InstanceSample) -> Limits:
        return Limits(sample.batch_size, sample.step_token_budget, 1, "fine", _Unreadable())  # type: ignore[arg-type]


class _Unreadable(dict[str, float]):
    def items(self) -> Never:
        raise RuntimeError("these figures cannot be read")
