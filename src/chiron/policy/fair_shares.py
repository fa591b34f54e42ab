"""Fair sharing of work between tenants: start-time fair queueing, counted in tokens.

After Goyal, Vin and Cheng (SIGCOMM 1996): each tenant's tag grows by what its work costs over its weight, the
lowest tag goes next, and who was away begins where the others are. What a piece of work costs is known when
it has ended; until then its expected cost is charged, and the difference is settled (reconstructed). Tags
never go down: what was charged too much is a credit against the next charges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PRESUMED_OUTPUT = 256.0
"""Output tokens of an item without a limit of its own, until an item of its tenant has ended."""
_SMOOTHING = 0.1


@dataclass(slots=True)
class _Account:
    tag: float = 0.0
    credit: float = 0.0
    output: float = 0.0
    """Smoothed output tokens of an item; 0: none has ended."""


class FairShares:
    """The tenants of one queue. Every operation is O(1)."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        """weight: of a tenant, > 0; asked at each charge."""
        self._weight = weight
        self._accounts: dict[str, _Account] = {}
        self._now = 0.0

    def tag(self, tenant: str) -> float:
        """Who has the lowest goes next; it only grows."""
        account = self._accounts.get(tenant)
        return self._now if account is None else max(self._now, account.tag)

    def cost(self, tenant: str, prompt_tokens: float, max_tokens: float) -> float:
        """Expected tokens of one item. max_tokens: most output; 0: the model's limit."""
        account = self._accounts.get(tenant)
        output = account.output if account is not None else 0.0
        if output:
            output = min(output, max_tokens or output)
        return max(1.0, prompt_tokens + (output or max_tokens or PRESUMED_OUTPUT))

    def charge(self, tenant: str, tokens: float, *, in_turn: bool = True) -> None:
        """An item of the tenant goes. in_turn: it had the lowest tag of all that could go."""
        account = self._accounts.setdefault(tenant, _Account())
        account.tag = max(self._now, account.tag)
        if in_turn:
            self._now = account.tag
        self._add(tenant, account, tokens)

    def settle(self, tenant: str, charged: float, prompt_tokens: int, output_tokens: int) -> None:
        """An item that was charged has ended, having cost this."""
        account = self._accounts.setdefault(tenant, _Account())
        account.output += (output_tokens - account.output) * (_SMOOTHING if account.output else 1.0)
        difference = prompt_tokens + output_tokens - charged
        if difference > 0:
            self._add(tenant, account, difference)
        else:
            account.credit -= difference

    def give_back(self, tenant: str, charged: float) -> None:
        """An item that was charged did not run."""
        self._accounts.setdefault(tenant, _Account()).credit += charged

    def forget_except(self, tenants: set[str]) -> None:
        """Drops the others, but for those who are still ahead of where they would begin anew."""
        for tenant in [each for each in self._accounts if each not in tenants]:
            if self._accounts[tenant].tag <= self._now:
                del self._accounts[tenant]

    def _add(self, tenant: str, account: _Account, tokens: float) -> None:
        paid = min(account.credit, tokens)
        account.credit -= paid
        account.tag += (tokens - paid) / self._weight(tenant)
