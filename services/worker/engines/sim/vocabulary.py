"""The sim engine's vocabulary: special tokens, every byte, letter pairs, and common words."""

from __future__ import annotations

import string

from services.worker.engines.sim import words

EOS = 0
END_OF_TURN = 1
ROLES = {"system": 2, "developer": 3, "user": 4, "assistant": 5, "tool": 6}
FIRST_BYTE = 16
"""Token FIRST_BYTE + b is the single byte b."""
_SPECIAL = {EOS: "<|eos|>", END_OF_TURN: "<|end|>"} | {id_: f"<|{role}|>" for role, id_ in ROLES.items()}


def _pieces() -> list[str]:
    spelled = [
        *words.DETERMINERS, *words.ADJECTIVES, *words.NOUNS, *words.VERBS, *words.PREPOSITIONS,
        *words.ADVERBS, *words.CONJUNCTIONS, *words.PRONOUNS, *words.EXTRA,
    ]  # fmt: skip
    letters = string.ascii_lowercase
    spaced = [f" {word}" for word in spelled]
    capital = [f" {word.capitalize()}" for word in spelled]
    bare = [*spelled, *(word.capitalize() for word in spelled), *words.SUFFIXES]
    pairs = [first + second for first in letters for second in letters]
    initials = [f" {letter}" for letter in string.ascii_letters]
    candidates = [*spaced, *capital, *bare, *pairs, *initials]
    return list(dict.fromkeys(piece for piece in candidates if len(piece) > 1))


_PIECES = _pieces()
_FIRST_PIECE = FIRST_BYTE + 256

IDS: dict[str, int] = {piece: _FIRST_PIECE + index for index, piece in enumerate(_PIECES)}
"""Token id of each piece of more than one byte."""
IDS |= {chr(byte): FIRST_BYTE + byte for byte in range(128)}

SIZE = _FIRST_PIECE + len(_PIECES)
"""Token ids are below this."""
LONGEST = max(map(len, IDS))
"""Characters in the longest piece."""

TEXTS: list[str | None] = [None] * SIZE
"""Text of each token; empty for special tokens; None for a byte that is only part of a character."""
TEXTS[:FIRST_BYTE] = [""] * FIRST_BYTE
for _piece, _id in IDS.items():
    TEXTS[_id] = _piece


def special_text(token: int) -> str:
    """How a special token is written when it is kept in the text; empty for other tokens."""
    return _SPECIAL.get(token, "")


def token_bytes(token: int) -> bytes:
    """The bytes that a token stands for; none for a special token."""
    text = TEXTS[token]
    return bytes([token - FIRST_BYTE]) if text is None else text.encode()
