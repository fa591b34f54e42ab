"""Beginnings that drawn prompts have in common, as instructions and examples of applications are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCKS = 1 << 20
"""More than any prompt has: keeps the blocks of two beginnings apart."""
_BEGINNINGS = 1 << 20


def shared_prefixes(
    prompt_tokens: NDArray[np.int32],
    beginnings: int,
    share: float,
    block_size: int,
    source: int,
    generator: np.random.Generator,
) -> tuple[tuple[int, ...], ...]:
    """Hashes of the full blocks that each prompt has in common with others.

    Every prompt begins with a share of its length of one of the `beginnings`, each as likely: a longer prompt
    has more of it. Hashes are negative, so that they are not mistaken for a trace's.

    Args:
        prompt_tokens: of each request.
        beginnings: how many different ones there are, >= 1.
        share: of a prompt's tokens, 0 to 1.
        block_size: tokens of a block.
        source: number that keeps the beginnings of several sources apart.
        generator: draws who has which.
    """
    which = generator.integers(beginnings, size=len(prompt_tokens))
    blocks = (share * prompt_tokens / block_size).astype(np.int64)
    most = int(blocks.max(initial=0))
    chains = [
        tuple(-1 - ((source * _BEGINNINGS + number) * _BLOCKS + block) for block in range(most))
        for number in range(beginnings)
    ]
    made: dict[tuple[int, int], tuple[int, ...]] = {}
    return tuple(
        made.setdefault((number, count), chains[number][:count])
        for number, count in zip(which.tolist(), blocks.tolist(), strict=True)
    )
