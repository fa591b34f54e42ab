"""Stop strings in streamed text do not depend on how tokens split it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engines.sim.stops import StopStrings


def released(pieces: list[str], stops: list[str], *, include: bool = False) -> tuple[str, str]:
    matcher, out = StopStrings(stops, include=include), ""
    for piece in pieces:
        out += matcher.add(piece)
        if matcher.match:
            return out, matcher.match
    return out + matcher.flush(), ""


def test_text_that_may_begin_a_stop_string_is_held() -> None:
    matcher = StopStrings(["end."], include=False)
    assert [matcher.add(piece) for piece in ("the en", "d o", "f")] == ["the ", "end o", "f"]


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert released(["abcdef"], ["bcde", "cd"]) == ("ab", "cd")


def test_it_is_kept_on_request() -> None:
    assert released(["a", "b", "c"], ["b"], include=True) == ("ab", "b")


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_any_split_gives_what_one_piece_gives(pieces: list[str], stops: list[str]) -> None:
    assert released(pieces, stops) == released(list("".join(pieces)), stops)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_stop_string_is_ever_let_out(text: str, stops: list[str]) -> None:
    out, match = released(list(text), stops)
    assert text.startswith(out)
    assert bool(match) == any(stop in text for stop in stops)
    assert not any(stop in out for stop in stops)
