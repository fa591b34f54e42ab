"""Ids of what is kept: those made later are greater, so that a list in their order is one in time."""

from __future__ import annotations

import re
import secrets
import time

FILE, BATCH = "file-", "batch_"
"""How the ids of what is kept begin."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MADE = re.compile(r"[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """A new one. Within a millisecond, or what routers' clocks differ by, the order is open."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def plausible(text: str) -> bool:
    """Whether it could be one: what cannot is looked for nowhere."""
    return _ID.fullmatch(text) is not None


def made(text: str, prefix: str) -> bool:
    """Whether it is as `new_id` makes them: what it names may have been there, and be gone."""
    return text.startswith(prefix) and _MADE.fullmatch(text, len(prefix)) is not None
