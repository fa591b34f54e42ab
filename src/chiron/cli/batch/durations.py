"""Times as people write them: 90s, 30m, 2h, 1d, 1h30m. Pure."""

from __future__ import annotations

import re

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def seconds_of(text: str) -> float:
    """A time in seconds; a bare number is seconds. Raises ValueError."""
    bare = text.strip().lower()
    parts = _PART.findall(bare)
    if parts and "".join(number + unit for number, unit in parts) == bare:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        try:
            seconds = float(bare)
        except ValueError:
            seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"must be a time like 90s, 30m, 2h or 1d, not {text!r}")
    return seconds


def short(seconds: float) -> str:
    """A time for people: two units at most."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02}s"
    if left < 86_400:
        return f"{left // 3600}h{left % 3600 // 60:02}m"
    return f"{left // 86_400}d{left % 86_400 // 3600:02}h"
