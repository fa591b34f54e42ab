"""How many items a router claims beyond the credits that it has heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.batch.window import ClaimWindow


def test_nothing_is_claimed_ahead_while_nothing_runs() -> None:
    window = ClaimWindow(32)
    assert window.ahead(0.0) == 0
    assert window.room(5, 0.0) == 5
    assert window.room(-3, 0.0) == 0


def test_what_is_under_way_counts() -> None:
    window = ClaimWindow(32)
    window.asked, window.unplaced, window.running = 2, 1, 1
    assert window.room(8, 0.0) == 8 + 1 - 3


def test_ahead_is_what_ends_while_a_claim_takes_its_time() -> None:
    window = ClaimWindow(32)
    window.running = 100
    now = 0.0
    for _ in range(2000):
        now += 0.005
        window.ended(now)
        window.claimed(0.02)
    # 200 a second, for 20 ms, half as much again, and one.
    assert window.ahead(now) == 1 + 6
    assert window.ahead(now + 30.0) == 2, "what ended long ago says nothing"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), max_size=50), st.integers(1, 64))
def test_it_is_bounded(events, most) -> None:
    window = ClaimWindow(most)
    window.running, now = 1, 0.0
    for gap, took in events:
        now += gap
        window.ended(now)
        window.claimed(took)
        assert 1 <= window.ahead(now) <= most + (most == 0)
