"""Items of an accepted batch count as arrived once, whatever comes first."""

from __future__ import annotations

from collections import Counter

from chiron.batch.records import Unit
from services.router.batch.arrivals import Arrivals

KEY, OTHER = ("acme", "b"), ("acme", "other")


def unit(batch, queued: int, model: str = "m") -> Unit:
    return Unit(batch, model, 9.0, False, 0, 0.0, queued, 0, 0)


def arrivals() -> tuple[Arrivals, Counter[str]]:
    counts: Counter[str] = Counter()
    return Arrivals(lambda model, items: counts.update({model: items})), counts


def test_accepted_before_it_is_read() -> None:
    here, counts = arrivals()
    here.accepted(KEY)
    here.read([unit(KEY, 5), unit(KEY, 2, "n"), unit(OTHER, 9)])
    assert counts == {"m": 5, "n": 2}


def test_accepted_after_it_was_read_and_partly_claimed() -> None:
    here, counts = arrivals()
    here.read([unit(KEY, 5)])
    here.read([unit(KEY, 1)])
    here.accepted(KEY)
    assert counts == {"m": 5}


def test_a_repeated_submission_counts_nothing() -> None:
    here, counts = arrivals()
    here.accepted(KEY)
    here.read([unit(KEY, 5)])
    here.accepted(KEY)
    here.read([unit(KEY, 4)])
    assert counts == {"m": 5}
    here.read([])
    here.accepted(KEY)
    here.read([])
    here.read([unit(KEY, 3)])
    assert counts == {"m": 5}, "what was put back has not arrived again"
