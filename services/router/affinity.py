"""What a router believes the engines of one model have cached of its prompts, and how right it was. Pure.

It learns from its own placements, once their prompts are computed: until then others with the same beginning
would only wait behind them. Workers correct it: they tell what comes into their engines' caches and leaves
them, and what each prompt found there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chiron.client.prefix import TOKEN_ENDS
from chiron.internal.v1 import router_pb2, worker_pb2
from chiron.policy.prefixes import PrefixIndex
from services.router.request import PendingRequest

_NONE: Mapping[str, int] = {}
_MEMORY = 0.9
"""Weight of all earlier prefills beside a new one of like size."""
_LEAST_TOKENS = 32
"""A prefill of fewer tokens tells of a step's time, not of the rate."""
_SURE_TOKENS = 1000.0
"""Hits that an instance is credited with at first."""
_MOST_OPEN = 4_096
"""Requests of a model on their way to their first token, 10 MiB; beyond that the oldest are given up."""


@dataclass(slots=True)
class _Seen:
    """What one incarnation has shown, fading."""

    tokens: float = 0.0
    seconds: float = 0.0
    expected: float = _SURE_TOKENS
    found: float = _SURE_TOKENS


class Affinity:
    """One model's index, asked for each request, told of each placement and of what workers say."""

    def __init__(self, limit: int) -> None:
        """Believes nothing. Remembers at most `limit` hashes."""
        self.index = PrefixIndex(limit)
        self._limit = limit
        self._seen: dict[str, _Seen] = {}
        # By instance and request: the share of the prompt that is expected to be cached, and its beginnings.
        self._open: dict[tuple[str, str], tuple[float, tuple[int, ...]]] = {}
        self._requests = self._prompt_tokens = self._cached_tokens = 0
        self._expected_tokens = 0.0

    def cached(self, request: PendingRequest) -> Mapping[str, int]:
        """Instance id → tokens of the request's prompt that are expected to be cached there.

        What its instances found of late, measured by what was believed, is what is expected of them: an
        engine that tells of no evictions, or caches nothing, is soon believed less.
        """
        depths = self.index.depths(request.prefixes)
        request.believed = {key: TOKEN_ENDS[depth - 1] for key, depth in depths.items()}
        if not depths:
            return _NONE
        expected = {}
        for key, tokens in request.believed.items():
            seen = self._seen.get(key)
            likely = tokens if seen is None else int(tokens * seen.found / seen.expected)
            if likely > 0:
                expected[key] = likely
        return expected

    def placed(self, request: PendingRequest, instance_id: str) -> None:
        """The request is on its way to an instance."""
        if not request.prefixes:
            return
        share = min(1.0, request.believed.get(instance_id, 0) / max(1, request.prompt_tokens))
        self._open[instance_id, request.request_id] = share, request.prefixes
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def told(self, instance_id: str, news: worker_pb2.PrefixNews) -> None:
        """A worker tells of its engine's cache."""
        if news.cleared:
            self._forget(instance_id)
        for prefill in news.prefills:
            self._prefilled(instance_id, prefill)
        # What is cached by now counts, not what a prefill has left there.
        if news.cached:
            self.index.add(instance_id, news.cached)
        if news.gone:
            self.index.gone(instance_id, news.gone)

    def void(self, instance_id: str) -> None:
        """An instance has started anew, or is gone."""
        self._forget(instance_id)
        self._seen.pop(instance_id, None)

    def _forget(self, instance_id: str) -> None:
        self.index.void(instance_id)
        # What was lost with its connection is told no more.
        for key in [key for key in self._open if key[0] == instance_id]:
            del self._open[key]

    def prefill_tokens_per_s(self, instance_id: str) -> float:
        """Prompt tokens that it computes a second for one request; 0: unknown."""
        seen = self._seen.get(instance_id)
        return seen.tokens / seen.seconds if seen is not None and seen.seconds else 0.0

    def state(self, model: str) -> router_pb2.RouterPrefixes:
        """Its size and how right it was."""
        return router_pb2.RouterPrefixes(
            model=model,
            remembered=len(self.index),
            limit=self._limit,
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            expected_tokens=round(self._expected_tokens),
            cached_tokens=self._cached_tokens,
        )

    def _prefilled(self, instance_id: str, prefill: worker_pb2.Prefill) -> None:
        seen = self._seen.get(instance_id)
        if seen is None:
            seen = self._seen[instance_id] = _Seen()
        tokens = prefill.prompt_tokens - prefill.cached_tokens
        if tokens >= _LEAST_TOKENS and prefill.prefill_ms > 0:
            seen.tokens = _MEMORY * seen.tokens + tokens
            seen.seconds = _MEMORY * seen.seconds + prefill.prefill_ms / 1e3
        placed = self._open.pop((instance_id, prefill.request_id), None)
        if placed is None:
            return
        share, prefixes = placed
        self.index.add(instance_id, prefixes)
        expected = share * prefill.prompt_tokens
        self._requests += 1
        self._prompt_tokens += prefill.prompt_tokens
        self._expected_tokens += expected
        self._cached_tokens += prefill.cached_tokens
        if expected:
            seen.expected = _MEMORY * seen.expected + expected
            seen.found = _MEMORY * seen.found + min(expected, prefill.cached_tokens)
