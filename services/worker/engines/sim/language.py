"""The sim engine's language model: which tokens may come next, as a pure function of all tokens before.

A 64-bit state absorbs every token, prompt and output alike, so a prompt that holds earlier output continues
it exactly. The state picks CANDIDATES tokens that fit the last token's part of speech; their probabilities
by rank are always the same. One state in MEAN_LENGTH ends the sequence, so lengths are geometric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from services.worker.engines.sim import words
from services.worker.engines.sim.vocabulary import IDS

MEAN_LENGTH = 200
"""Mean output length in tokens when nothing else ends it."""
CANDIDATES = 24
"""Tokens with a noticeable probability at each position."""
DECAY = 0.72
"""Probability of a candidate relative to the one ranked before it."""
FLOOR = -25.0
"""Logit of every token that is no candidate."""
ENDING = 1e-6
"""Probability that anything but the end of sequence follows where the state asks for the end."""

_TOTAL = math.fsum(DECAY**rank for rank in range(CANDIDATES))
LOGITS = tuple(math.log(DECAY**rank / _TOTAL) for rank in range(CANDIDATES))
"""Natural logarithm of the probability of each rank."""

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """Scrambles 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def absorb(state: int, token: int) -> int:
    """The state after one more token."""
    return mix((state + token * 0x9E3779B97F4A7C15 + 1) & _MASK)


def absorb_all(state: int, tokens: Iterable[int]) -> int:
    """The state after these tokens."""
    for token in tokens:
        state = absorb(state, token)
    return state


def block_hashes(salt: int, tokens: Sequence[int], block_size: int) -> tuple[int, ...]:
    """Chained hash of each full block of `block_size` tokens."""
    state, hashes = salt, []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        state = absorb_all(state, tokens[start : start + block_size])
        hashes.append(state)
    return tuple(hashes)


def ends_here(state: int) -> bool:
    """True where the end of sequence is the most likely token."""
    return mix(state ^ 0x5851F42D4C957F2D) % MEAN_LENGTH == 0


def candidate(state: int, last_token: int, rank: int) -> int:
    """The token of this rank (0: the likeliest) among those that may follow, the end of sequence aside."""
    if last_token in _NOUNS and state >> 61 < 2:
        if rank == 0:
            return _STOP if state >> 60 & 1 else _COMMA
        rank -= 1
    followers = _FOLLOWERS.get(last_token, _OPENERS)
    size = len(followers)
    return followers[(state + rank * (1 + (state >> 32) % (size - 1))) % size]


def candidates(state: int, last_token: int) -> list[int]:
    """All candidates, likeliest first; they differ from each other."""
    return [candidate(state, last_token, rank) for rank in range(CANDIDATES)]


def _tokens(spelled: Iterable[str], *, capital: bool = False) -> list[int]:
    return [IDS[" " + (word.capitalize() if capital else word)] for word in dict.fromkeys(spelled)]


def _prime_length(tokens: Sequence[int]) -> tuple[int, ...]:
    """Distinct tokens cut to a prime number, so that any stride through them meets each one once."""
    distinct = list(dict.fromkeys(tokens))
    size = next(n for n in range(len(distinct), 1, -1) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    return tuple(distinct[:size])


def _follow() -> dict[int, tuple[int, ...]]:
    determiners, pronouns, nouns = words.DETERMINERS, words.PRONOUNS, words.NOUNS
    after = [
        (words.CONJUNCTIONS, [*determiners, *pronouns]),
        (words.ADVERBS, [*determiners, *words.PREPOSITIONS]),
        (words.PREPOSITIONS, [*determiners, *nouns[:20]]),
        (pronouns, [*words.VERBS, *words.ADVERBS[:10]]),
        (determiners, [*words.ADJECTIVES, *nouns]),
        (words.ADJECTIVES, nouns),
        (words.VERBS, [*determiners, *words.PREPOSITIONS[:12], *words.ADVERBS[:12]]),
        (nouns, [*words.VERBS[:40], *words.PREPOSITIONS[:20], *words.CONJUNCTIONS]),
    ]
    table = {_COMMA: _prime_length(_tokens([*words.CONJUNCTIONS[:4], *determiners, *pronouns]))}
    for spelled, followers in after:
        row = _prime_length(_tokens(followers))
        for token in [*_tokens(spelled), *_tokens(spelled, capital=True)]:
            table.setdefault(token, row)
    return table


_COMMA, _STOP = IDS[","], IDS["."]
_NOUNS = frozenset(_tokens(words.NOUNS))
_FOLLOWERS = _follow()
_OPENERS = _prime_length(
    _tokens([*words.DETERMINERS, *words.PRONOUNS, *words.CONJUNCTIONS[5:]], capital=True)
)
"""After a full stop, and after anything that is no word of the model's own."""
