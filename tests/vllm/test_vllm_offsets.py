"""Token offsets are exact however vLLM groups tokens into deltas."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from services.worker.engines.vllm.offsets import TextOffsets

TEXT = "Zwölf Boxkämpfer 🚀🚀 你好，世界 — und so weiter"
PROMPT = [b"Pro", b"mpt", b": "]


def split(source: random.Random) -> list[bytes]:
    """Tokens of one to four bytes, which respect no character."""
    data, tokens = TEXT.encode(), []
    while data:
        size = source.randint(1, 4)
        tokens.append(data[:size])
        data = data[size:]
    return tokens


def released(tokens: Sequence[bytes], held_back: int) -> str:
    """What vLLM has released: all up to the last token that ended a character, less what is held back."""
    while tokens and b"".join(tokens).decode(errors="replace").endswith("\ufffd"):
        tokens = tokens[:-1]
    whole = b"".join(tokens).decode()
    return whole[: max(0, len(whole) - held_back)]


@pytest.mark.parametrize("held_back", [0, 3])
@pytest.mark.parametrize("seed", range(8))
def test_grouping_does_not_change_the_offsets(held_back: int, seed: int) -> None:
    source = random.Random(seed)
    tokens = split(source)
    expected = [len(released(tokens[:count], held_back)) for count in range(1, len(tokens) + 1)]
    expected[-1] = len(TEXT)  # the last delta releases what was held back
    vocabulary = [*PROMPT, *tokens]
    ids = list(range(len(PROMPT), len(vocabulary)))

    def decode(token_ids: Sequence[int]) -> str:
        return b"".join(vocabulary[each] for each in token_ids).decode(errors="replace")

    cuts = sorted(source.sample(range(1, len(tokens)), 6))
    offsets, found, out = TextOffsets(decode, range(len(PROMPT)), held_back), [], 0
    for start, end in itertools.pairwise([0, *cuts, len(tokens)]):
        text = TEXT[out : expected[end - 1]]
        out = expected[end - 1]
        found += offsets.ends(ids[start:end], text)
    assert found == expected


def as_bytes(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


def test_a_prompt_that_ends_within_a_character_counts_the_character_once() -> None:
    rocket = list("🚀".encode())
    offsets = TextOffsets(as_bytes, [*b"Go ", *rocket[:2]], held_back=0)
    assert offsets.ends([*rocket[2:], *b"!"], "🚀!") == [0, 1, 2]


def test_a_token_after_the_stop_string_ends_where_the_text_was_cut() -> None:
    offsets = TextOffsets(as_bytes, [], held_back=0)
    assert offsets.ends(list(b"abcd"), "ab") == [1, 2, 2, 2]


def test_a_delta_without_tokens_has_no_ends() -> None:
    offsets = TextOffsets(as_bytes, [], held_back=2)
    assert offsets.ends(list(b"ab"), "") == [0, 0]
    assert offsets.ends([], "ab") == []
    assert offsets.ends(list(b"c"), "c") == [3]
