"""When a file is forgotten: OpenAI's `expires_after`. Pure."""

from __future__ import annotations

from services.router.http.errors import HttpError

SHORTEST_S, LONGEST_S = 3_600, 2_592_000
ANCHOR = "created_at"


def check_expiry(anchor: object, seconds: object, param: str) -> float | None:
    """Seconds from the file's creation; None: neither was given. Raises HttpError (400).

    Args:
        anchor: as it was given, or None.
        seconds: likewise; digits count as a number, as forms have them.
        param: what the two belong to, for the error.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != ANCHOR:
        text = f"'{param}.anchor' must be {ANCHOR!r}."
        raise HttpError(400, text, param=f"{param}.anchor", code="invalid_value")
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10:
        seconds = int(seconds)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not SHORTEST_S <= seconds <= LONGEST_S:
        text = f"'{param}.seconds' must be an integer from {SHORTEST_S} to {LONGEST_S}."
        raise HttpError(400, text, param=f"{param}.seconds", code="invalid_value")
    return float(seconds)
