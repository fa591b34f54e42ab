"""Llumnix's planner of migrations: hand-worked pairs and choices."""

from __future__ import annotations

import math

import pytest

from chiron.sim.baselines.migration import (
    FreenessPairing,
    MigrationThresholds,
    MigrationView,
    Movable,
    Pair,
    migration_freeness,
)


def view(
    name: str,
    *,
    free: int = 1000,
    running: int = 10,
    waiting: int = 0,
    first: int = 0,
    draining: bool = False,
) -> MigrationView:
    return MigrationView(name, draining, 16, running, waiting, first, free)


def test_freeness_counts_the_first_that_waits_and_no_other() -> None:
    assert migration_freeness(view("a", free=100, running=10)) == 10.0
    # The eleventh of the batch would be the one that waits: (100 - 12) / 11.
    assert migration_freeness(view("a", free=100, running=10, waiting=1, first=12)) == 8.0
    assert migration_freeness(view("a", free=100, running=10, waiting=50, first=12)) == 8.0
    assert migration_freeness(view("a", free=0, running=4, waiting=1, first=20)) == -4.0
    assert migration_freeness(view("a", running=0)) == math.inf
    assert migration_freeness(view("a", running=0, draining=True)) == -math.inf


def test_those_below_three_give_to_those_above_the_least_free_to_the_most_free() -> None:
    instances = [
        view("a", free=20),  # 2
        view("b", free=400),  # 40
        view("c", free=0),  # 0
        view("d", free=900),  # 90
        view("e", free=10),  # 1: nobody is left for it
        view("f", free=30),  # 3: neither below nor above
    ]

    assert FreenessPairing().pairs(instances) == [Pair("c", "d"), Pair("e", "b")]


def test_one_that_drains_gives_first_and_takes_nothing() -> None:
    instances = [view("a", free=0), view("b", draining=True, free=1000), view("c", free=900)]

    assert FreenessPairing().pairs(instances) == [Pair("b", "c")]
    # Nothing runs on it any more: there is nothing to give.
    emptied = [view("b", draining=True, running=0), view("c", free=900)]
    assert FreenessPairing().pairs(emptied) == []


def test_a_calm_fleet_is_left_alone() -> None:
    assert FreenessPairing().pairs([view("a", free=500), view("b", free=400)]) == []
    assert FreenessPairing().pairs([]) == []


def test_a_destination_needs_a_free_slot() -> None:
    source = view("a", free=0)

    assert FreenessPairing().pairs([source, view("b", running=16)]) == []
    assert FreenessPairing().pairs([source, view("b", running=15, waiting=1)]) == []
    assert FreenessPairing().pairs([source, view("b", running=15)]) == [Pair("a", "b")]


def test_thresholds_of_giving_and_taking_may_differ() -> None:
    pairing = FreenessPairing(MigrationThresholds(migrate_out_below=50, migrate_in_above=80))
    instances = [view("a", free=400), view("b", free=600), view("c", free=900)]

    assert pairing.pairs(instances) == [Pair("a", "c")]


def test_of_the_least_urgent_the_shortest_moves() -> None:
    requests = [Movable(1, 0, 50), Movable(2, 1, 300), Movable(3, 1, 200), Movable(4, 1, 200)]

    assert FreenessPairing().choose(requests) == 3
    assert FreenessPairing().choose(requests[:1]) == 1
    assert FreenessPairing().choose([]) is None


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("migrate_out_below", {"migrate_out_below": 4.0, "migrate_in_above": 3.0}),
        ("migration_interval_s", {"migration_interval_s": 0.0}),
        ("migration_interval_s", {"migration_interval_s": math.inf}),
    ],
)
def test_thresholds_out_of_range_are_refused_by_name(field: str, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        MigrationThresholds(**values)
