"""Whether a request goes where the beginning of its prompt is cached. Pure.

What is predicted is the time to the first token: the wait, and the prefill of what is not cached. Load goes
first: the cache decides only among instances where the request would wait alike, so that a prefix that
everybody shares spreads over as many instances as its load needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chiron.policy.words import Role

Key = tuple[bool, int, float, int, float, float, str]
"""Order of instances by load: (waits, rank of the role where a slot is free, wait in seconds, rank, share
of the slots in use, inter-token latency in ms, id); the least is the best."""

SHARE_BAND = 0.25
"""A cached prefix outweighs this much more of the slots in use, as a share of them, and no more."""
DEAD_BAND_S = 0.002
"""A first token that is sooner by less than this is no sooner, in seconds."""
ASSUMED_TOKENS_PER_S = 5000.0
"""Prefill of one request where none has been measured, in prompt tokens per second."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A place that an instance has for a request."""

    key: Key
    role: Role
    prefill_tokens_per_s: float
    """0: unknown."""

    @property
    def waits(self) -> bool:
        """Whether no slot is free there."""
        return self.key[0]

    @property
    def wait_s(self) -> float:
        """Expected wait, in seconds."""
        return self.key[2]

    @property
    def share(self) -> float:
        """Share of its slots in use."""
        return self.key[4]

    @property
    def instance_id(self) -> str:
        """Whose it is."""
        return self.key[6]


def predicted_ttft_s(offer: Offer, prompt_tokens: int, cached_tokens: int) -> float:
    """Wait and prefill of what is not cached, in seconds. The last prompt token is always computed."""
    uncached = max(1, prompt_tokens - cached_tokens)
    return offer.wait_s + uncached / (offer.prefill_tokens_per_s or ASSUMED_TOKENS_PER_S)


def prefer_cached(
    prompt_tokens: int, cached: Mapping[str, int], least: Offer, warm: Iterable[Offer]
) -> tuple[Offer, float]:
    """The offer to take, and by how many seconds its first token is predicted sooner than at `least`.

    Args:
        prompt_tokens: length of the prompt; 0: unknown.
        cached: instance id → prompt tokens cached there.
        least: the best by load alone.
        warm: the offers of instances in `cached`.
    """
    prompt_tokens = max(prompt_tokens, *cached.values(), 1)
    least_s = predicted_ttft_s(least, prompt_tokens, cached.get(least.instance_id, 0))
    chosen, chosen_s = least, least_s - DEAD_BAND_S
    for offer in warm:
        if offer.waits != least.waits:
            continue
        if not offer.waits and (offer.key[1] != least.key[1] or offer.share > least.share + SHARE_BAND):
            continue
        ttft_s = predicted_ttft_s(offer, prompt_tokens, cached[offer.instance_id])
        if ttft_s < chosen_s or (ttft_s == chosen_s and offer.key < chosen.key):
            chosen, chosen_s = offer, ttft_s
    return chosen, least_s - chosen_s if chosen is not least else 0.0
