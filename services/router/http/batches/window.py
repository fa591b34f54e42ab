"""`completion_window`: how long a batch may take. Pure."""

from __future__ import annotations

import math
import re

from services.router.batch.header import LONGEST_DEADLINE_S
from services.router.http.errors import HttpError

_WINDOW = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def window_s(text: str) -> float:
    """Seconds; OpenAI knows `24h` alone, here any number of s, m, h or d is one. Raises HttpError (400)."""
    match = _WINDOW.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 0 < seconds <= LONGEST_DEADLINE_S:
        most = f"{LONGEST_DEADLINE_S / _UNITS['d']:g}d"
        told = (
            f"'completion_window' must be a number of s, m, h or d above 0, such as '24h', and at most "
            f"{most}, not {text[:40]!r}."
        )
        raise HttpError(400, told, param="completion_window", code="invalid_value")
    return seconds
