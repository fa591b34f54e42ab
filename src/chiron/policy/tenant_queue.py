"""Requests of several tenants in one queue: each tenant has its own line, and what comes free is shared.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over tenants, any discipline within one. A
tenant's tag grows by what its requests are expected to cost over its weight; the tenant with the lowest tag
goes next, and who was away begins where the others are. While two tenants i and j both wait, what they are
given per weight differs by at most C_i / w_i + C_j / w_j, where C is the cost of a tenant's costliest request
(theorem 1 there): however many requests wait of one, the other gets its share.

Costs are expected tokens, because what an answer really costs is known only when it has ended, and often only
to its worker. What has gone and comes back unserved is given back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from chiron.policy.disciplines import Discipline, Waiting


def expected_cost(prompt_tokens: float, choices: int, max_tokens: float, mean_output: float) -> float:
    """Tokens that a request is expected to cost, prompt included; at least 1.

    Args:
        prompt_tokens: of the prompt.
        choices: answers to it.
        max_tokens: most output tokens of each; 0: no limit.
        mean_output: of an answer of the model.
    """
    output = min(max_tokens, mean_output) if max_tokens else mean_output
    return max(1.0, prompt_tokens + choices * output)


@dataclass(slots=True)
class _Tenant:
    line: Discipline
    costs: dict[Hashable, float] = field(default_factory=dict)
    """Of those that wait, by request id."""
    cost: float = 0.0
    """Their sum."""
    weight: float = 1.0
    """As it was when this tenant last began to wait or was charged."""
    tag: float = 0.0
    entry: int = 0
    """Number of its entry among the tags that counts; 0: it needs another one."""


class TenantQueue:
    """One queue of several tenants. Times never go back; every operation is O(log n), amortised, in requests
    and tenants, but for `ahead`, which is O(tenants that wait).

    With one tenant it is its discipline. Nothing is remembered of tenants once nobody waits.
    """

    def __init__(
        self, line: Callable[[], Discipline], weight: Callable[[str], float] = lambda _: 1.0
    ) -> None:
        """Empty.

        Args:
            line: makes an empty queue of one tenant's requests.
            weight: of a tenant, > 0; asked when it begins to wait and at each charge.
        """
        self._line = line
        self._weight = weight
        self._tenants: dict[str, _Tenant] = {}
        self._of: dict[Hashable, str] = {}
        """Request id → tenant."""
        self._tags: list[tuple[float, int, str]] = []
        """A heap; entries that do not count any more are dropped late."""
        self._entries = 0
        self._now = 0.0
        """Virtual time: the tag of whoever went last in turn."""

    def __len__(self) -> int:
        return len(self._of)

    def push(self, request: Waiting, tenant: str = "", cost: float = 1.0, refund: float = 0.0) -> None:
        """Enqueue.

        Args:
            request: as its tenant's discipline sees it.
            tenant: whose it is.
            cost: what it is expected to cost, > 0.
            refund: what `take` said of it when it went before, if it comes back unserved.

        Raises:
            ValueError: its id waits already.
        """
        if request.request_id in self._of:
            raise ValueError(f"request {request.request_id!r} waits already")
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant(self._line())
        known.line.push(request)
        if not known.costs:
            known.weight = self._weight(tenant)
        known.costs[request.request_id] = cost
        known.cost += cost
        self._of[request.request_id] = tenant
        if refund:
            # Its tenant had its turn, and has it again: before others with the same tag.
            known.tag, known.entry = max(self._now, known.tag - refund), -self._entries
            self._enter(tenant, known, known.tag)
        elif len(known.costs) == 1:
            self._enter(tenant, known, max(self._now, known.tag))

    def peek(self, now_s: float) -> Waiting | None:
        """Who goes next at `now_s`; None: nobody waits."""
        tenant = self._lowest()
        return None if tenant is None else self._tenants[tenant].line.peek(now_s)

    def take(self, request_id: Hashable) -> float:
        """Takes out a request that is served now, and charges its tenant.

        Returns what it was charged, in the measure of `refund`. Raises KeyError if it does not wait.
        """
        lowest = self._lowest()
        name = self._of[request_id]
        tenant = self._tenants[name]
        if name == lowest:
            self._now = tenant.tag
        tenant.weight = self._weight(name)
        charge = tenant.costs[request_id] / tenant.weight
        tenant.tag, tenant.entry = max(self._now, tenant.tag) + charge, 0
        self.remove(request_id)
        if tenant.costs:
            self._enter(name, tenant, tenant.tag)
        return charge

    def remove(self, request_id: Hashable) -> None:
        """Takes out a request that leaves unserved. Raises KeyError if it does not wait."""
        name = self._of.pop(request_id)
        tenant = self._tenants[name]
        tenant.line.remove(request_id)
        cost = tenant.costs.pop(request_id)
        tenant.cost = tenant.cost - cost if tenant.costs else 0.0
        if not self._of:
            self._tenants.clear()
            self._tags.clear()
            self._now = 0.0

    def ahead(self, tenant: str) -> int:
        """Requests that are taken to go before one of this tenant that is added now, as things stand: all of
        its own, and of each other tenant what its share allows until then."""
        own = self._tenants.get(tenant)
        now = starts = self._now
        count = 0
        if own is not None:
            starts = max(now, own.tag) + own.cost / own.weight
            count = len(own.costs)
        for other in self._tenants.values():
            waiting = len(other.costs)
            if not waiting or other.tag > starts or other is own:
                continue
            share = (starts - max(now, other.tag)) * other.weight
            # Of equal tags, whoever came first goes first.
            count += min(waiting, int(share * waiting / other.cost) + 1)
        return count

    def emptied(self) -> TenantQueue:
        """An empty queue in which tenants stand as they do here, to see who would go when."""
        other = TenantQueue(self._line, self._weight)
        other._now = self._now
        for name, known in self._tenants.items():
            other._tenants[name] = _Tenant(self._line(), tag=known.tag, entry=known.entry)
        other._entries = self._entries
        return other

    def _enter(self, name: str, tenant: _Tenant, tag: float) -> None:
        """The tenant is among those that wait, with this tag; whose tag is as before keeps its turn."""
        if tag != tenant.tag or not tenant.entry:
            self._entries += 1
            tenant.tag, tenant.entry = tag, self._entries
        heapq.heappush(self._tags, (tag, tenant.entry, name))
        if len(self._tags) > 2 * len(self._tenants) + 64:
            self._tags = [(each.tag, each.entry, key) for key, each in self._tenants.items() if each.costs]
            heapq.heapify(self._tags)

    def _lowest(self) -> str | None:
        """The waiting tenant with the lowest tag."""
        while self._tags:
            _, entry, name = self._tags[0]
            tenant = self._tenants[name]
            if tenant.costs and tenant.entry == entry:
                return name
            heapq.heappop(self._tags)
        return None
