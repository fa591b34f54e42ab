"""What the demo asks of its cluster, and when: drawn from a seed before anything runs. Pure.

An interactive load with a burst meets a batch backlog that is due later: the burst takes slots from batch
work, and batch work gets the slots that the burst leaves.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

DURATION_S = 90.0
"""Interactive requests arrive until then, in seconds."""
BASE_PER_S, BURST_PER_S = 2.0, 50.0
"""Interactive arrivals per second (Poisson), and during the burst."""
BURST_FROM_S, BURST_TO_S = 30.0, 50.0
PROMPT_TOKENS = (20, 120)
"""Of an interactive request; uniform, both ends included. So are all ranges here."""
OUTPUT_TOKENS = (16, 32)
SAMPLE_AT_S, SAMPLE_ITEMS = 0.5, 16
"""A small batch at first, from which the cluster learns how long batch requests are."""
BACKLOG_AT_S, BACKLOG_ITEMS = 16.0, 140
DEADLINE_S = 54.0
"""Of each batch, from its submission."""
BATCH_PROMPT_TOKENS = (50, 250)
BATCH_OUTPUT_TOKENS = (48, 96)
KILL_AT_S = 66.0
"""When a worker, the leader and an agent are killed: after the burst, while the fleet shrinks."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    at_s: float
    """From the beginning."""
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """A batch."""

    at_s: float
    deadline_s: float
    """From its submission."""
    items: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is asked of the cluster."""

    interactive: tuple[Ask, ...]
    """In the order of time."""
    backlogs: tuple[Backlog, ...]


def make_plan(seed: int) -> Plan:
    """Draws a plan; arrivals and each kind's lengths come from streams of their own."""
    arrivals, lengths = random.Random(f"arrivals-{seed}"), random.Random(f"interactive-{seed}")
    asks = []
    at_s = 0.0
    while True:
        rate = BURST_PER_S if BURST_FROM_S <= at_s < BURST_TO_S else BASE_PER_S
        due_s = at_s + arrivals.expovariate(rate)
        if rate == BASE_PER_S and at_s < BURST_FROM_S < due_s:
            # An exponential wait knows no past, so that it may begin anew where the rate changes.
            at_s = BURST_FROM_S
            continue
        at_s = due_s
        if at_s >= DURATION_S:
            break
        asks.append(Ask(at_s, lengths.randint(*PROMPT_TOKENS), lengths.randint(*OUTPUT_TOKENS)))
    batches = random.Random(f"batch-{seed}")
    return Plan(
        tuple(asks),
        tuple(
            Backlog(
                at_s,
                DEADLINE_S,
                tuple(
                    Ask(at_s, batches.randint(*BATCH_PROMPT_TOKENS), batches.randint(*BATCH_OUTPUT_TOKENS))
                    for _ in range(count)
                ),
            )
            for at_s, count in ((SAMPLE_AT_S, SAMPLE_ITEMS), (BACKLOG_AT_S, BACKLOG_ITEMS))
        ),
    )
