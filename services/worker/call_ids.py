"""Ids of tool calls: the same on every instance that works on the request, and no others anywhere."""

from __future__ import annotations

import re
import string
from hashlib import blake2b

_SHORT = re.compile(r"[A-Za-z0-9]{9}")
"""The only form that Mistral's chat templates take."""
_NUMBERED = re.compile(r"functions\..+:\d+", re.DOTALL)
"""Kimi K2's form: its template numbers the calls of a whole conversation, and the id says which one it is."""
_LETTERS = string.ascii_letters + string.digits


def call_id(choice: str, place: int, own: str) -> str:
    """The id of a call.

    Args:
        choice: names the request and its choice.
        place: of the call in the choice's output, from 0.
        own: the engine's id, where it gives one: it shows what form the template needs.
    """
    if _NUMBERED.fullmatch(own):
        return own
    digest = blake2b(f"{choice}/{place}".encode(), digest_size=12, person=b"chiron tool call").digest()
    if not _SHORT.fullmatch(own):
        return f"call_{digest.hex()}"
    number, letters = int.from_bytes(digest, "big"), ""
    while len(letters) < 9:
        number, letter = divmod(number, len(_LETTERS))
        letters += _LETTERS[letter]
    return letters
