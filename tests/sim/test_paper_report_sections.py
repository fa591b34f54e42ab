"""What experiments tell is plain data; its helpers never make a figure up."""

from __future__ import annotations

from math import nan

import pytest

from chiron.sim.paper.sections import Point, mean, number, point, row, share, spread, table


def test_a_figure_that_there_is_not_stays_none() -> None:
    assert number(None) is None
    assert number(nan) is None
    assert share(None) is None
    assert spread([None, nan]) is None
    assert mean([]) is None
    assert point(3.0, [None]) == Point(3.0, None)


def test_a_spread_shows_the_mean_and_the_extremes_where_they_differ() -> None:
    assert spread([1.0, 2.0, 6.0], ".1f") == "3.0 [1.0–6.0]"
    assert spread([1.0, None, 1.04], ".1f") == "1.0"
    assert share(0.98765) == "98.77%"


def test_a_point_is_the_mean_over_the_seeds_with_its_spread() -> None:
    assert point(8.0, [0.5, None, 1.0], scale=100) == Point(8.0, 75.0, 50.0, 100.0)


def test_a_table_refuses_a_row_that_does_not_fit_its_columns() -> None:
    fitting = table("t", ["a", "b"], [row("1", None, command="chiron sim run x")])
    assert fitting.rows[0].cells == ("1", None)

    with pytest.raises(ValueError, match="t: a row of 1 cells, not 2"):
        table("t", ["a", "b"], [row("1")])
