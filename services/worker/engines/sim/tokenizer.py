"""Text to token ids and back; every text survives the round trip, and no half character is ever shown."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Sequence

from services.worker.engines.sim.vocabulary import FIRST_BYTE, IDS, LONGEST, TEXTS, special_text, token_bytes

_CHUNKS = re.compile(r" ?[A-Za-z]+|[^A-Za-z]", re.DOTALL)
"""A word with the space before it, or one other character."""


def encode(text: str) -> list[int]:
    """Token ids of a text: common words with their leading space are one each, others fall to pieces."""
    tokens: list[int] = []
    # Not all at once: in one call, a long text would keep every other thread waiting.
    for match in _CHUNKS.finditer(text):
        chunk = match[0]
        known = IDS.get(chunk)
        if known is not None:
            tokens.append(known)
        else:
            tokens += _pieces(chunk)
    return tokens


@functools.lru_cache(maxsize=8192)
def _pieces(chunk: str) -> tuple[int, ...]:
    """The longest known pieces from the left; UTF-8 bytes where none is known."""
    tokens: list[int] = []
    start = 0
    while start < len(chunk):
        for end in range(min(len(chunk), start + LONGEST), start, -1):
            known = IDS.get(chunk[start:end])
            if known is not None:
                tokens.append(known)
                start = end
                break
        else:
            tokens += [FIRST_BYTE + byte for byte in chunk[start].encode()]
            start += 1
    return tuple(tokens)


def decode(tokens: Iterable[int]) -> str:
    """The text of whole output; bytes that are no UTF-8 become U+FFFD."""
    return b"".join(map(token_bytes, tokens)).decode(errors="replace")


class Detokenizer:
    """Turns tokens into text one at a time and holds the bytes of an unfinished character."""

    __slots__ = ("_decoder", "_keep_special", "_pending")

    def __init__(self, *, keep_special: bool = False) -> None:
        self._keep_special = keep_special
        self._decoder: codecs.IncrementalDecoder | None = None
        self._pending = False

    def add(self, token: int) -> str:
        """The text that this token releases."""
        text = TEXTS[token]
        if text is not None and not self._pending:
            return text or (special_text(token) if self._keep_special else "")
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        released = self._decoder.decode(token_bytes(token))
        self._pending = bool(self._decoder.getstate()[0])
        if self._keep_special and text == "":
            released += special_text(token)
        return released

    def flush(self) -> str:
        """What is left when no token follows: U+FFFD for an unfinished character, else nothing."""
        if self._decoder is None or not self._pending:
            return ""
        self._pending = False
        return self._decoder.decode(b"", final=True)


def check_ids(tokens: Sequence[int], size: int) -> int | None:
    """The first id that is not in the vocabulary; None when all are."""
    return next((token for token in tokens if token >= size), None)
