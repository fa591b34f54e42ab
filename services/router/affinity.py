"""What a router believes the engines of one model have cached of its prompts, and how right it was. Pure.

It learns from its own placements, each of which computes a prompt where it sends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from chiron.client.prefix import HASH_BYTES, TOKEN_ENDS
from chiron.policy.prefixes import PrefixIndex
from services.router.request import PendingRequest

_NONE: Mapping[str, int] = {}


def salted(tenant: str, hashes: Sequence[bytes]) -> tuple[int, ...]:
    """The hashes as this router keeps them: what one tenant sends never names what another one has sent.

    Without tenancy there is nobody to keep apart, and nothing to compute.
    """
    if tenant:
        salt = _salt(tenant)
        hashes = [blake2b(each, digest_size=HASH_BYTES, salt=salt).digest() for each in hashes]
    return tuple(int.from_bytes(each, "little") for each in hashes)


@lru_cache(maxsize=4096)
def _salt(tenant: str) -> bytes:
    return blake2b(tenant.encode(), digest_size=16).digest()


@dataclass(slots=True)
class HitCounts:
    """Of placements since the start, in tokens as the callers estimate them."""

    requests: int = 0
    """Requests placed with hashes."""
    prompt_tokens: int = 0
    expected_tokens: int = 0
    """Of them, those believed to be cached where the request was sent."""


class Affinity:
    """One model's index, asked for each request and told of each placement."""

    def __init__(self, limit: int) -> None:
        """Believes nothing. Remembers at most `limit` hashes."""
        self.index = PrefixIndex(limit)
        self.counts = HitCounts()

    def cached(self, request: PendingRequest) -> Mapping[str, int]:
        """Instance id → tokens of the request's prompt that are believed to be cached there."""
        if not request.prefixes:
            return _NONE
        depths = self.index.depths(request.prefixes)
        return {key: TOKEN_ENDS[depth - 1] for key, depth in depths.items()}

    def placed(self, request: PendingRequest, instance_id: str, cached_tokens: int) -> None:
        """The request is on its way to an instance."""
        if not request.prefixes:
            return
        counts = self.counts
        counts.requests += 1
        counts.prompt_tokens += request.prompt_tokens
        counts.expected_tokens += min(cached_tokens, request.prompt_tokens)
        self.index.add(instance_id, request.prefixes)

    def void(self, instance_id: str) -> None:
        """An instance has started anew, or is gone."""
        self.index.void(instance_id)
