"""Quotas of tenants and of keys: requests per second, tokens per minute, requests at once. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.auth.buckets import Bucket
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2

DEFAULT_MAX_TOKENS = 1024
"""What a request counts for that sets no max_tokens, where the quota does not say."""
_BUSY_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class Hold:
    """What one request has taken of its tenant's quota, and of its key's."""

    account: Account
    tokens: int
    key: Account | None = None
    """The key's, where it has limits of its own."""
    open: bool = True
    unused: int = 0
    """Tickets in a row that its request came back from without having used them."""

    def end(self) -> None:
        """The request has ended."""
        if self.open:
            self.open = False
            self.account.running -= 1
            if self.key is not None:
                self.key.running -= 1

    def undo(self) -> None:
        """The request never ran, or was lost: it counts for nothing."""
        if self.open:
            self.end()
            self.account.give_back(self.tokens)
            if self.key is not None:
                self.key.give_back(self.tokens)

    def redo(self) -> None:
        """It runs after all, and counts whatever else has been taken meanwhile."""
        if not self.open:
            self.open = True
            self.account.charge(self.tokens)
            if self.key is not None:
                self.key.charge(self.tokens)


class Account:
    """What one tenant, or one key, uses at this door."""

    def __init__(self, quota: access_pb2.Quota, now: float, key_id: str = "") -> None:
        """Nothing is used. key_id: whose it is; empty: a tenant's."""
        self.running = 0
        self._quota = quota
        self._key_id = key_id
        self._requests = self._bucket(*_requests(quota), now)
        self._tokens = self._bucket(*_tokens(quota), now)

    def change(self, quota: access_pb2.Quota, now: float) -> None:
        """Takes another quota."""
        if quota == self._quota:
            return
        self._quota = quota
        self._requests = _resized(self._requests, *_requests(quota), now)
        self._tokens = _resized(self._tokens, *_tokens(quota), now)

    def take(self, tokens: int, now: float, key: Account | None = None) -> Hold:
        """Takes what one request needs; otherwise as `take_all`."""
        [hold] = self.take_all((tokens,), now, key)
        return hold

    def take_all(self, tokens: Sequence[int], now: float, key: Account | None = None) -> list[Hold]:
        """Takes what the requests of one call need, all of it or nothing, of both where the key has limits of
        its own.

        Args:
            tokens: what each of them may use; at least one.
            now: the time.
            key: the account of the key with which they are asked; None: it has no limits of its own.

        Raises:
            ChironError: QUOTA_EXCEEDED with the time until there is room; without one when there never is.
                Its metadata names the limit and whose it is; where both stand in the way, it is the one that
                does so for longer.
        """
        requests, together = len(tokens), sum(tokens)
        refusal = self._refusal(requests, together, now)
        if key is not None:
            refusal = _longer(key._refusal(requests, together, now), refusal)
        accounts = [self] if key is None else [self, key]
        if refusal is not None:
            if refusal.retry_after_s is not None:
                for account in accounts:
                    account._keep_place(requests, together, now + refusal.retry_after_s)
            raise refusal
        for account in accounts:
            account._charge(requests, together)
        return [Hold(self, each, key) for each in tokens]

    def in_use(self, now: float) -> dict[str, float]:
        """Limit → share of it that is in use: 0 for none, 1 when nothing is left."""
        found = {}
        if self._quota.concurrent:
            found["concurrent"] = self.running / self._quota.concurrent
        if self._requests is not None:
            found["requests_per_s"] = self._requests.used(now)
        if self._tokens is not None:
            found["tokens_per_min"] = self._tokens.used(now)
        return found

    def _refusal(self, requests: int, tokens: int, now: float) -> ChironError | None:
        """Why requests of so many tokens together may not run now; None: they may.

        Those that have to come again stand in line, so that smaller ones do not always go before them.
        """
        quota = self._quota
        if (never := self._never(requests, tokens)) is not None:
            return never
        if quota.concurrent and self.running + requests > quota.concurrent:
            text = f"{self.running} requests of {self._whose} run already"
            if requests == 1:
                text += ", as many as its quota allows at once"
            else:
                text += f"; {requests} more are beyond its quota of {quota.concurrent} at once"
            return self._exceeded("concurrent", text, _BUSY_RETRY_S)
        if self._requests is not None and (wait_s := self._requests.wait_s(requests, now)) > 0:
            return self._used_up("requests_per_s", f"{quota.requests_per_s:g} requests a second", wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(tokens, now)) > 0:
            return self._used_up("tokens_per_min", f"{quota.tokens_per_min} tokens a minute", wait_s)
        return None

    def _never(self, requests: int, tokens: int) -> ChironError | None:
        """Why they may never run together, however little is in use; None: they may at some time."""
        quota = self._quota
        if quota.concurrent and requests > quota.concurrent:
            return self._too_large("concurrent", f"is {requests} requests", f"{quota.concurrent} at once")
        if self._requests is not None and requests > self._requests.capacity:
            rate = f"{quota.requests_per_s:g} a second"
            return self._too_large("requests_per_s", f"is {requests} requests at once", rate)
        if self._tokens is not None and tokens > self._tokens.capacity:
            rate = f"{quota.tokens_per_min} a minute"
            # One that says nothing of max_tokens gets a default, which its caller may not know of.
            return self._too_large(
                "tokens_per_min", f"may use {tokens} tokens of prompt and max_tokens together", rate
            )
        return None

    def _too_large(self, limit: str, what: str, most: str) -> ChironError:
        text = (
            f"the call {what}; the quota of {self._whose} ({limit}) is {most}, so that it can never be let in"
        )
        return self._exceeded(limit, text, None)

    def _used_up(self, limit: str, what: str, wait_s: float) -> ChironError:
        return self._exceeded(limit, f"the quota of {self._whose}, {what}, is used up", wait_s)

    def _exceeded(self, limit: str, text: str, retry_after_s: float | None) -> ChironError:
        told = {"limit": limit, "limit_of": "key" if self._key_id else "tenant"}
        if self._key_id:
            told["key_id"] = self._key_id
        return ChironError(Reason.QUOTA_EXCEEDED, text, retry_after_s=retry_after_s, metadata=told)

    @property
    def _whose(self) -> str:
        return f"API key {self._key_id}" if self._key_id else "this tenant"

    def charge(self, tokens: int) -> None:
        """Counts a request, also beyond the quota: what comes later waits the longer."""
        self._charge(1, tokens)

    def _charge(self, requests: int, tokens: int) -> None:
        """Counts those of one call, as they were asked for."""
        if self._requests is not None:
            self._requests.take(requests)
        if self._tokens is not None:
            self._tokens.take(tokens)
        self.running += requests

    def _keep_place(self, requests: int, tokens: int, until: float) -> None:
        """A call comes again at that time, whichever limit has refused it: it stays in line for others."""
        if self._requests is not None:
            self._requests.keep_place(requests, until)
        if self._tokens is not None:
            self._tokens.keep_place(tokens, until)

    def give_back(self, tokens: int) -> None:
        """Puts back what a request took that never ran."""
        if self._requests is not None:
            self._requests.give_back(1)
        if self._tokens is not None:
            self._tokens.give_back(tokens)

    @staticmethod
    def _bucket(capacity: float, rate_per_s: float, now: float) -> Bucket | None:
        return Bucket(capacity, rate_per_s, now) if rate_per_s > 0 else None


def _longer(one: ChironError | None, other: ChironError | None) -> ChironError | None:
    """The refusal that lasts longer; one without a time lasts for ever."""
    if one is None or other is None:
        return one or other
    return other if _lasts_s(other) > _lasts_s(one) else one


def _lasts_s(refusal: ChironError) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


def metered_max_tokens(quota: access_pb2.Quota, max_tokens: int) -> int:
    """Most output tokens that a request may have: as asked, or the default where tokens are counted."""
    if max_tokens or not quota.tokens_per_min:
        return max_tokens
    return quota.default_max_tokens or DEFAULT_MAX_TOKENS


def _requests(quota: access_pb2.Quota) -> tuple[float, float]:
    return max(1.0, quota.requests_per_s), quota.requests_per_s


def _tokens(quota: access_pb2.Quota) -> tuple[float, float]:
    return float(quota.tokens_per_min), quota.tokens_per_min / 60


def _resized(bucket: Bucket | None, capacity: float, rate_per_s: float, now: float) -> Bucket | None:
    if rate_per_s <= 0:
        return None
    if bucket is None:
        return Bucket(capacity, rate_per_s, now)
    bucket.resize(capacity, rate_per_s, now)
    return bucket
