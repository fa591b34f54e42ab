"""Files are cut into lines in bounded memory, whatever the chunks are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.http.batches.lines import LineReader, NumberedLine, TooManyLinesError


def read(*chunks: bytes, longest: int = 100, most: int = 1_000) -> list[NumberedLine]:
    reader = LineReader(longest, most)
    found = [line for chunk in chunks for line in reader.feed(chunk)]
    return [*found, *reader.finish()]


def test_blank_lines_count_and_are_passed_over() -> None:
    assert read(b"\n a \r\n\r\n\t\nb") == [(2, b"a"), (5, b"b")]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert read(b"\xef\xbb", b"\xbfa\n\xef\xbb\xbfb") == [(1, b"a"), (2, b"\xef\xbb\xbfb")]


def test_a_line_that_is_too_long_is_told_and_not_kept() -> None:
    assert read(b"x" * 60, b"x" * 60, b"x\nshort\n", b"y" * 101) == [(1, None), (2, b"short"), (3, None)]
    assert read(b"x" * 100) == [(1, b"x" * 100)]


@given(content=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200)))
def test_where_chunks_end_makes_no_difference(content: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    chunks = [content[start:end] for start, end in pairwise(places)]
    assert read(*chunks, longest=20) == read(content, longest=20)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\r\n"])
def test_a_file_of_nothing_has_no_lines(content: bytes) -> None:
    assert read(content) == []


def test_blank_lines_count_against_the_most_that_there_may_be() -> None:
    assert read(b"\n\na", most=3) == [(3, b"a")]
    with pytest.raises(TooManyLinesError):
        read(b"\n\n\na", most=3)
