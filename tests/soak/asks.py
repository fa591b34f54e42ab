"""What the load asks for, and when: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from chiron.client import Slo
from chiron.client.options import RequestOptions

_WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "heron", "naïve", "松", "🌊", "Ω")
_SHORT, _LONG = (4, 40), (150, 500)


class Way(StrEnum):
    """How a request is sent."""

    LOOKASIDE = "lookaside"
    """Streamed from the worker that a router named."""
    PROXIED = "proxied"
    """Streamed through a router."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests a second of each class."""

    interactive: float = 2.0
    batch: float = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    number: int
    at_s: float
    """Seconds from the beginning of the load."""
    way: Way
    whole: bool
    """Asked for as one completion, not as a stream."""
    cancel_after: int | None
    """Given up by its reader once so many tokens have come."""
    stop_at: float | None
    """Ends at a stop string that is cut from the answer there, as a share of its length."""
    resumable: bool
    """Whether its stream, once it has begun, can go on from another instance."""
    options: RequestOptions


def asks(seed: int, models: Sequence[str], rates: Rates) -> Iterator[Ask]:
    """The requests, without end, in the order of their arrival; ids are unique within a seed."""
    arrivals = random.Random(f"soak-arrivals-{seed}")
    both = rates.interactive + rates.batch
    at_s, number = arrivals.expovariate(both), 0
    while True:
        # A stream of its own for each request, so that a change to one leaves the others alone.
        source = random.Random(f"soak-request-{seed}-{number}")
        kind: Literal["interactive", "batch"] = (
            "interactive" if arrivals.random() * both < rates.interactive else "batch"
        )
        yield _ask(number, at_s, source, f"soak-{seed}-{number}", source.choice(models), kind)
        at_s, number = at_s + arrivals.expovariate(both), number + 1


def _ask(
    number: int,
    at_s: float,
    source: random.Random,
    request_id: str,
    model: str,
    kind: Literal["interactive", "batch"],
) -> Ask:
    text = " ".join(source.choices(_WORDS, k=source.randint(3, 60)))
    options: RequestOptions = {
        "request_id": request_id,
        "model": model,
        "request_class": kind,
        "max_tokens": source.randint(*(_LONG if source.random() < 0.5 else _SHORT)),
        "temperature": 0.0,
        "ignore_eos": source.random() < 0.8,
    }
    if source.random() < 0.3:
        options["messages"] = [{"role": "user", "content": text}]
    else:
        options["prompt"] = text
    if kind == "interactive":
        options["slo"] = Slo(ttft_ms=2000, itl_ms=400)
    # The sim engine goes on from whatever tokens it is given, sampling included; several choices it does not.
    rest = source.random()
    if rest < 0.1:
        options["seed"], options["temperature"] = source.randint(1, 1000), 0.8
    if rest < 0.05:
        options["n"] = 2
    whole = source.random() < 0.1
    cancelled = not whole and source.random() < 0.1
    return Ask(
        number,
        at_s,
        Way.LOOKASIDE if source.random() < 0.6 else Way.PROXIED,
        whole,
        source.randint(0, options["max_tokens"] or 0) if cancelled else None,
        source.random() if source.random() < 0.25 else None,
        rest >= 0.05,
        options,
    )
