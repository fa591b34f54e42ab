"""Interactive and batch backpressure (arXiv 2501.08090, the global autoscaler), as formulas.

IBP in instances and BBP by first tokens are the paper's; IBP in slots, BBP by finish times, and the number of
batch instances in closed form are reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def interactive_backpressure(demand: float, capacity: float) -> float:
    """IBP: demand over capacity, in the same unit. With no capacity: 1 if anything waits, else 0."""
    if capacity > 0:
        return demand / capacity
    return 1.0 if demand > 0 else 0.0


@dataclass(frozen=True, slots=True)
class GroupWork:
    """A request group as batch backpressure sees it."""

    due_in_s: float
    """Time from now by which its work must have been done, in seconds; negative: passed."""
    work_tokens: float
    """Output tokens of this group and of all that goes before it, at the chosen quantile."""
    last_s: float = 0.0
    """What the longest of its last requests takes once all have begun, in seconds."""
    grace_s: float = 0.0
    """By how much later than due its work may be done before anything is added for it, in seconds."""


@dataclass(frozen=True, slots=True)
class BatchSupply:
    """Output tokens per second that batch work gets, now and later."""

    rate: float
    """Now, in tokens per second."""
    later: tuple[tuple[float, float], ...] = ()
    """(seconds from now, additional tokens per second from then on)."""

    def tokens_by(self, seconds: float) -> float:
        """Output tokens made until then, in tokens."""
        return max(0.0, seconds) * self.rate + sum(
            rate * max(0.0, seconds - ready_s) for ready_s, rate in self.later
        )

    def time_for(self, tokens: float) -> float:
        """Seconds until that many output tokens are made; inf: never."""
        if tokens <= 0:
            return 0.0
        since_s, rate = 0.0, self.rate
        for ready_s, more in sorted(self.later):
            if rate > 0 and tokens <= rate * (ready_s - since_s):
                break
            tokens -= rate * (ready_s - since_s)
            since_s, rate = ready_s, rate + more
        return since_s + tokens / rate if rate > 0 else math.inf


def batch_backpressure(groups: Sequence[GroupWork], supply: BatchSupply) -> int:
    """BBP: the number of groups whose work would be done later than it is due."""
    return sum(supply.tokens_by(group.due_in_s) < group.work_tokens for group in groups)


def missing_batch_instances(
    groups: Sequence[GroupWork], supply: BatchSupply, tokens_per_s: float, ready_in_s: float
) -> float:
    """The fewest further batch instances, as a fraction, with which every group is done when it is due.

    Each makes `tokens_per_s` from `ready_in_s` on. A group that is due before two load times have passed
    counts as due then: what is late is to be done soon, and no later deadline asks for more than an earlier
    one. 0 where nothing is missing; inf where instances would make no tokens.
    """
    most = 0.0
    for group in groups:
        due_s = max(group.due_in_s, 2 * ready_in_s, 1e-3)
        missing = group.work_tokens - supply.tokens_by(due_s)
        if missing <= 0:
            continue
        each = tokens_per_s * (due_s - ready_in_s)
        most = max(most, missing / each if each > 0 else math.inf)
    return most
