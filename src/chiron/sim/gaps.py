"""The longest of the steps between two moments, for the longest gap in each request's stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def longest_between(
    values: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The largest of values[first:last] for each pair of bounds; 0 where there is none.

    A range is covered by two of a power of two. Values are taken together over 1, 2, 4, ... neighbours, so
    this takes O(n log n) for n values, and O(1) for each pair.
    """
    found = np.zeros(len(first))
    lengths = last - first
    # The exponent of the largest power of two within each length; -1 for an empty range.
    levels = np.frexp(np.maximum(lengths, 0))[1] - 1
    for level in range(int(levels.max(initial=-1)) + 1):
        width = 1 << level
        asked = levels == level
        found[asked] = np.maximum(values[first[asked]], values[last[asked] - width])
        values = np.maximum(values[:-width], values[width:])
    return found
