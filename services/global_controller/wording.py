"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 instance`, `2 instances`: a number before a noun whose plural takes an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
