"""Which beginnings of prompts the engine has in its KV cache: routers send prompts to their like. Pure.

A beginning counts as cached from the first token of a request that has it, until the engine tells that the
KV block in which it ends has left the cache. Where it ends among the tokens is reckoned from its share of the
prompt's bytes.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence

from chiron.internal.v1 import worker_pb2
from chiron.requests.prefixes import NamedPrompt
from services.worker.engines.base import Engine, EngineRequest
from services.worker.pace import Pace

MOST_KEPT = 16_384
"""Beginnings that are followed; the least recently used ones count as gone beyond that."""
MOST_TOLD = 2_048
"""Beginnings, and prefills, that wait to be told to a subscriber, and those that a new one is told of."""


class PrefixNews:
    """What one subscriber has not been told yet."""

    def __init__(self) -> None:
        self.cleared = True
        """What it was told before is void; it begins with the newest that there are."""
        self.changes: dict[int, bool] = {}
        """Hash → whether it is cached now."""
        self.prefills: list[worker_pb2.Prefill] = []

    @property
    def any(self) -> bool:
        """Whether there is some."""
        return self.cleared or bool(self.changes or self.prefills)

    def tell(self, changes: Sequence[int], cached: bool) -> None:
        """Some beginnings are cached now, or are no more."""
        if self.cleared:
            return
        self.changes.update(dict.fromkeys(changes, cached))
        if len(self.changes) > MOST_TOLD:
            self.clear()

    def clear(self) -> None:
        """Too much has changed to tell it one by one."""
        self.cleared = True
        self.changes.clear()


class PrefixBook:
    """The beginnings that are cached, and the subscribers who want to know."""

    def __init__(self, on_gone: Callable[[], None]) -> None:
        """Knows of none. `on_gone` is called when some have left the cache."""
        self._on_gone = on_gone
        self._block_tokens = 0
        self._end_of: OrderedDict[int, Hashable] = OrderedDict()
        self._ending_in: dict[Hashable, set[int]] = {}
        self._subscribers: list[PrefixNews] = []

    def __len__(self) -> int:
        return len(self._end_of)

    @property
    def wanted(self) -> bool:
        """Whether anybody wants to know: nothing need be named otherwise."""
        return bool(self._subscribers)

    @contextlib.contextmanager
    def subscribe(self, wanted: bool) -> Iterator[PrefixNews | None]:
        """News for one subscriber; None where it wants none."""
        if not wanted:
            yield None
            return
        news = PrefixNews()
        self._subscribers.append(news)
        try:
            yield news
        finally:
            self._subscribers.remove(news)

    def follow(self, engine: Engine) -> None:
        """The engine that tells of its cache, if it does."""
        self._block_tokens = engine.follow_cache(self.gone)

    def computed(self, engine: Engine, order: EngineRequest, prompt: NamedPrompt, pace: Pace) -> None:
        """A request has its first output: routers are told what is cached now, and how long that took."""
        tokens = len(order.prompt_token_ids)
        if not order.delivered_token_ids:
            cached = min(pace.cached_tokens, tokens)
            self.prefilled(
                worker_pb2.Prefill(
                    request_id=order.request_id,
                    prompt_tokens=tokens,
                    cached_tokens=cached,
                    prefill_ms=pace.prefill_ms,
                )
            )
        if self._block_tokens and prompt.hashes:
            self.cached(prompt, tokens, self._block_tokens, engine.prompt_blocks(order))

    def prefilled(self, report: worker_pb2.Prefill) -> None:
        """A request has its first token."""
        for news in self._subscribers:
            if len(news.prefills) < MOST_TOLD:
                news.prefills.append(report)

    def cached(self, prompt: NamedPrompt, tokens: int, block_tokens: int, blocks: Sequence[Hashable]) -> None:
        """A prompt has been computed.

        Args:
            prompt: its beginnings.
            tokens: its length.
            block_tokens: length of one of the engine's blocks.
            blocks: its full blocks, from the first.
        """
        if not blocks:
            return
        new, end_of = [], self._end_of
        # From the longest, so that the shortest is the most recently used.
        for key, share in zip(reversed(prompt.hashes), reversed(prompt.shares), strict=True):
            number = min(int(share * tokens) // block_tokens, len(blocks)) - 1
            block = blocks[max(0, number)]
            before = end_of.pop(key, None)
            end_of[key] = block
            if before is None:
                new.append(key)
            elif before != block:
                self._leave(before, key)
            self._ending_in.setdefault(block, set()).add(key)
        if new:
            for news in self._subscribers:
                news.tell(new, True)
        lost = []
        while len(end_of) > MOST_KEPT:
            key, block = end_of.popitem(last=False)
            self._leave(block, key)
            lost.append(key)
        self._lost(lost)

    def gone(self, blocks: Sequence[Hashable] | None) -> None:
        """Blocks have left the engine's cache; None: all have."""
        if blocks is None:
            self._end_of.clear()
            self._ending_in.clear()
            for news in self._subscribers:
                news.clear()
            self._on_gone()
            return
        lost = []
        for block in blocks:
            for key in self._ending_in.pop(block, ()):
                del self._end_of[key]
                lost.append(key)
        self._lost(lost)

    def take(self, news: PrefixNews) -> worker_pb2.PrefixNews:
        """What a subscriber has not been told, which it then has been."""
        told = worker_pb2.PrefixNews(cleared=news.cleared, prefills=news.prefills)
        if news.cleared:
            newest = reversed(self._end_of)
            told.cached.extend(key for key, _ in zip(newest, range(MOST_TOLD), strict=False))
        else:
            told.cached.extend(key for key, cached in news.changes.items() if cached)
            told.gone.extend(key for key, cached in news.changes.items() if not cached)
        news.cleared, news.changes, news.prefills = False, {}, []
        return told

    def _lost(self, keys: Sequence[int]) -> None:
        if keys:
            for news in self._subscribers:
                news.tell(keys, False)
            self._on_gone()

    def _leave(self, block: Hashable, key: int) -> None:
        ending = self._ending_in[block]
        ending.discard(key)
        if not ending:
            del self._ending_in[block]
