"""What a simulated router believes to be cached where, by the index that live routers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chiron.client.prefix import TOKEN_ENDS
from chiron.policy.prefixes import PrefixIndex
from chiron.sim.instance import SimInstance

_INDEX = 65_536
"""As live routers have by default."""


class SimPrefixes:
    """Names beginnings of prompts where live doors do, by the engine's own block hashes."""

    def __init__(
        self, prefix: tuple[tuple[int, ...], ...], first_token_s: Sequence[float], block_tokens: int
    ) -> None:
        """Believes nothing.

        Args:
            prefix: chained hashes of each request's shared leading KV blocks.
            first_token_s: when each request had its first token; nan: not yet.
            block_tokens: length of a block.
        """
        self._first_token_s = first_token_s
        self._open: dict[str, list[int]] = {}
        self._index = PrefixIndex(_INDEX)
        self._prefix = prefix
        self._block_tokens = block_tokens
        # The last of the blocks that end where a door's does, or before.
        self._places = sorted({end // block_tokens - 1 for end in TOKEN_ENDS if end >= block_tokens})

    def cached(self, request_id: int) -> Mapping[str, int]:
        """Instance id → prompt tokens of a request that are believed to be cached there."""
        depths = self._index.depths(self._names(request_id))
        return {key: (self._places[depth - 1] + 1) * self._block_tokens for key, depth in depths.items()}

    def placed(self, request_id: int, instance: SimInstance) -> None:
        """A request is on its way to an instance."""
        if self._prefix[request_id]:
            instance.engine.pool.follow()
            self._open.setdefault(instance.instance_id, []).append(request_id)

    def told(self, instance: SimInstance, now: float) -> None:
        """A load message tells whose prompts are computed and what has left the cache."""
        key = instance.instance_id
        if instance.dead:
            self._index.void(key)
            self._open.pop(key, None)
            return
        if waiting := self._open.get(key):
            left = []
            for request_id in waiting:
                if self._first_token_s[request_id] <= now:
                    self._index.add(key, self._names(request_id))
                else:
                    left.append(request_id)
            self._open[key] = left
        if gone := instance.engine.pool.evicted():
            self._index.gone(key, gone)

    def _names(self, request_id: int) -> tuple[int, ...]:
        blocks = self._prefix[request_id]
        return tuple(blocks[place] for place in self._places if place < len(blocks))
