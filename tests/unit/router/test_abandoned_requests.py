"""Who is turned away for what it abandons, for how long, and who is not."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest

from services.router.abandoned import Abandoned, Opener

PER_S, AT_ONCE = 200.0, 500


def limited(per_s: float = PER_S, draw: Callable[[], float] = lambda: 0.0) -> Abandoned:
    """Whose draws turn away all who may be."""
    return Abandoned(per_s, 0.0, draw)


def line(number: int, owner: str = "host") -> Opener:
    return Opener(owner, f"{owner}:{number}")


def after(abandoned: Abandoned, counts: Mapping[Opener, int], now: float = 0.0) -> Abandoned:
    for opener, count in counts.items():
        for _ in range(count):
            abandoned.count(opener, now)
    return abandoned


def test_a_burst_of_hundreds_turns_nobody_away() -> None:
    abandoned = after(limited(), {line(0): AT_ONCE})
    assert abandoned.pause_s(line(0), 0.0) == 0
    abandoned.count(line(0), 0.0)
    assert abandoned.pause_s(line(0), 0.0) == 1.0


def test_only_who_abandons_more_than_its_share_is_turned_away() -> None:
    heavy, light, other = line(0), line(1), line(2)
    abandoned = after(limited(), {heavy: 1000, light: 100})
    assert abandoned.pause_s(heavy, 0.0) > 0
    assert abandoned.pause_s(light, 0.0) == abandoned.pause_s(other, 0.0) == 0


def test_connections_do_not_win_an_owner_more_than_its_share() -> None:
    crowd = {line(number, "a"): 5 for number in range(200)}
    moderate = Opener("b", "b:1")
    abandoned = after(limited(), {**crowd, moderate: 200})
    assert all(abandoned.pause_s(opener, 0.0) > 0 for opener in crowd)
    assert abandoned.pause_s(moderate, 0.0) == 0


@pytest.mark.parametrize("lines", [1, 8, 100])
def test_a_flood_over_any_number_of_connections_comes_down_to_the_limit(lines: int) -> None:
    openers = [line(number) for number in range(lines)]
    quiet = line(lines)
    abandoned, let_in, refused_quiet = limited(draw=random.Random(1).random), 0, 0
    for step in range(30_000):
        now = step / 1000
        opener = openers[step % lines]
        if not abandoned.pause_s(opener, now):
            abandoned.count(opener, now)
            let_in += step >= 10_000
        if step % 200 == 0:
            refused_quiet += abandoned.pause_s(quiet, now) > 0
            abandoned.count(quiet, now)
    assert PER_S * 0.9 < let_in / 20 < PER_S * 1.3
    # It abandons five a second: less than any share where there are few others.
    assert not refused_quiet or lines == 100


def test_who_is_a_little_above_its_share_is_turned_away_now_and_then() -> None:
    draws = [0.0]
    abandoned = after(limited(draw=lambda: draws[0]), {line(0): round(1.125 * AT_ONCE)})
    refused = {}
    for draws[0] in (0.0, 0.45, 0.55, 0.99):
        refused[draws[0]] = abandoned.pause_s(line(0), 0.0) > 0
    assert refused == {0.0: True, 0.45: True, 0.55: False, 0.99: False}
    draws[0] = 0.999
    assert after(abandoned, {line(0): AT_ONCE // 4}).pause_s(line(0), 0.0) > 0


def test_pauses_grow_with_the_excess_in_few_steps_and_end() -> None:
    abandoned = limited()
    pauses = []
    for _ in range(8000):
        abandoned.count(line(0), 0.0)
        pauses.append(abandoned.pause_s(line(0), 0.0))
    assert sorted(pauses) == pauses
    assert 4 < len(set(pauses)) < 20
    assert pauses[-1] < 10
    assert abandoned.pause_s(line(0), pauses[-1]) == 0


@pytest.mark.parametrize("quiet_s", [20.0, 249.0, 251.0, 1e5, 1e9])
def test_what_was_long_ago_does_not_count(quiet_s: float) -> None:
    abandoned = after(limited(), {line(0): 1000})
    assert abandoned.too_much(0.0)
    assert not abandoned.too_much(quiet_s)
    after(abandoned, {line(1): AT_ONCE - 10}, quiet_s)
    assert not abandoned.too_much(quiet_s)
    after(abandoned, {line(1): 20}, quiet_s)
    assert abandoned.pause_s(line(1), quiet_s) > 0
    assert abandoned.pause_s(line(0), quiet_s) == 0


def test_lines_are_forgotten() -> None:
    abandoned = limited()
    for number in range(50_000):
        abandoned.count(line(number, f"host-{number % 100}"), number / 500)
    # What is left of a line is nothing after 7.5 s, or 3,750 others.
    assert len(abandoned) < 10_000


@pytest.mark.parametrize("ask", [lambda a: a.too_much(0.0), lambda a: a.pause_s(line(0), 0.0)])
def test_without_a_limit_nobody_is_turned_away(ask: Callable[[Abandoned], object]) -> None:
    abandoned = after(limited(0.0), {line(0): 100_000})
    assert not ask(abandoned)
    assert not len(abandoned)
