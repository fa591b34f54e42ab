"""The search for the smallest size that will do: few questions, and no trust in a curve that only rises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chiron.sim.planning.search import Found, smallest


class Curve:
    """Answers from a rule, and keeps what it was asked."""

    def __init__(self, does: Callable[[int], bool]) -> None:
        self._does = does
        self.asked: list[list[int]] = []

    def __call__(self, sizes: Sequence[int]) -> dict[int, bool]:
        self.asked.append(list(sizes))
        return {size: self._does(size) for size in sizes}

    @property
    def sizes(self) -> list[int]:
        return [size for sizes in self.asked for size in sizes]


def find(does: Callable[[int], bool], start: int = 1, **options: Any) -> tuple[Found, Curve]:
    curve = Curve(does)
    return smallest(range(1, 101), curve, start=start, **options), curve


@pytest.mark.parametrize("needed", [1, 2, 7, 50, 99, 100])
@pytest.mark.parametrize("start", [1, 7, 60, 100, 500])
@pytest.mark.parametrize("width", [1, 3])
def test_the_smallest_is_found_from_any_guess_and_the_one_below_was_tried(
    needed: int, start: int, width: int
) -> None:
    found, curve = find(lambda size: size >= needed, start, width=width)

    assert found.size == needed
    assert found.upsets == ()
    assert needed == 1 or found.tried[needed - 1] is False
    assert len(curve.sizes) == len(set(curve.sizes))
    assert max(map(len, curve.asked)) <= max(width, 8)


def test_it_halves_instead_of_trying_all() -> None:
    _, curve = find(lambda size: size >= 77, start=1, check=False)

    # Strides that double, then halves: 2 log2(100) are 14.
    assert len(curve.sizes) <= 14


def test_a_smaller_size_that_does_beside_the_answer_is_searched_on_from() -> None:
    # 41 and 42 do as well, by chance: halving meets 29 and 44, which do not, and so finds 45.
    does = {41, 42, *range(45, 101)}

    found, _ = find(lambda size: size in does, start=60)

    assert found.size == 41
    assert found.upsets == (43, 44)
    assert found.steady_from == 45


def test_a_larger_size_that_does_not_is_told() -> None:
    found, _ = find(lambda size: size >= 20 and size != 22, start=10)

    assert found.size == 20
    assert found.upsets == (22,)
    assert found.steady_from is not None
    assert found.steady_from > 22


def test_when_the_largest_does_not_there_is_no_steady_size() -> None:
    found, _ = find(lambda size: 20 <= size < 100, start=10, also=(100,))

    assert found.size == 20
    assert found.steady_from is None


def test_when_none_does_all_parts_of_the_ladder_have_been_tried() -> None:
    found, _ = find(lambda _size: False, start=80)

    assert found.size is None
    assert found.steady_from is None
    assert min(found.tried) == 1
    assert max(found.tried) == 100
    assert any(30 < size < 70 for size in found.tried)


def test_when_only_the_middle_does_it_is_found_although_the_largest_does_not() -> None:
    found, _ = find(lambda size: 38 <= size <= 44, start=80)

    assert found.size == 38


def test_sizes_that_are_asked_for_are_tried_and_others_than_the_ladder_s_are_not() -> None:
    curve = Curve(lambda size: size >= 8)

    found = smallest(range(4, 41, 4), curve, start=5, also=(40, 6))

    assert found.size == 8
    assert 40 in found.tried
    assert 6 not in found.tried
    assert all(size % 4 == 0 for size in found.tried)


def test_no_ladder_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="ladder"):
        smallest([], Curve(bool), start=1)
