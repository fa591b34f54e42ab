"""When requests arrive: a Poisson or gamma renewal process, carried through a rate curve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chiron.sim.rates import RateCurve

_CHUNK = 4096


def arrival_times(
    curve: RateCurve, generator: np.random.Generator, *, until_s: float = math.inf, cv: float = 1.0
) -> NDArray[np.float64]:
    """Draws arrival times in [0, until_s), ascending.

    In units of expected requests the gaps are independent, gamma distributed with mean 1 and standard
    deviation `cv` (shape 1/cv², scale cv²); `cv` 1 is a Poisson process and 0 one arrival at each whole
    number. The first gap is what is left of a gap that has been under way for ever, so that the process is
    stationary from time 0: the expected number of arrivals is `curve.expected(until_s)` at any cv.

    Args:
        curve: the rate over time.
        generator: source of randomness; the same state gives the same times.
        until_s: end, in seconds; finite.
        cv: coefficient of variation of the gaps, >= 0.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    if not 0 <= until_s < math.inf:
        raise ValueError(f"until_s: must be finite and >= 0, not {until_s:g}")
    if not 0 <= cv < math.inf:
        raise ValueError(f"cv: must be a number >= 0, not {cv:g}")
    expected = curve.expected(until_s)
    if expected <= 0:
        return np.empty(0)
    units = _renewals(generator, expected, cv)
    times = curve.when(units[units < expected])
    return times[times < until_s]


def _renewals(generator: np.random.Generator, end: float, cv: float) -> NDArray[np.float64]:
    """Arrival points beyond 0, at unit rate, up to some point past `end`."""
    chunks = [np.array([_first_gap(generator, cv)])]
    while chunks[-1][-1] < end:
        count = max(_CHUNK, int((end - chunks[-1][-1]) * 1.1))
        chunks.append(chunks[-1][-1] + np.cumsum(_gaps(generator, cv, count)))
    return np.concatenate(chunks)


def _gaps(generator: np.random.Generator, cv: float, count: int) -> NDArray[np.float64]:
    if cv == 0:
        return np.ones(count)
    return generator.gamma(1 / cv**2, cv**2, count)


def _first_gap(generator: np.random.Generator, cv: float) -> float:
    """A uniform share of a length-biased gap: a gamma gap's length-biased form has one more in its shape."""
    whole = 1.0 if cv == 0 else float(generator.gamma(1 / cv**2 + 1, cv**2))
    return whole * float(generator.random())
