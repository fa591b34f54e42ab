"""Ids of what is kept: those made later are greater, so that a list in their order is one in time.

Their last digits are a sum of the others, so that an id that nobody was ever given is told from one whose
object is gone. It is no secret: it finds mistakes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time

FILE, BATCH = "file-", "batch_"
"""How the ids of what is kept begin."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MADE = re.compile(r"[0-9a-f]{32}")
_SUM = 6
"""Digits of the sum."""


def new_id(prefix: str) -> str:
    """A new one. Within a millisecond, or what routers' clocks differ by, the order is open."""
    digits = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(7)}"
    return f"{prefix}{digits}{_sum(prefix, digits)}"


def plausible(text: str) -> bool:
    """Whether it could be one: what cannot is looked for nowhere."""
    return _ID.fullmatch(text) is not None


def made(text: str, prefix: str) -> bool:
    """Whether `new_id` has made it: what it names was there, here or elsewhere, and may be gone."""
    digits = text.removeprefix(prefix)
    if not text.startswith(prefix) or _MADE.fullmatch(digits) is None:
        return False
    return digits[-_SUM:] == _sum(prefix, digits[:-_SUM])


def _sum(prefix: str, digits: str) -> str:
    return hashlib.blake2b(
        f"{prefix}{digits}".encode(), digest_size=_SUM // 2, person=b"chiron-id"
    ).hexdigest()
