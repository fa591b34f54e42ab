"""Who may use this router, and how much."""

from __future__ import annotations

import asyncio

from chiron.auth.access import AccessTable
from chiron.auth.callers import Caller
from chiron.auth.credentials import CallContext, Credentials
from chiron.auth.quotas import Account
from chiron.auth.rights import check_allowed
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2
from services.router.holds import LookasideHolds
from services.router.request import PendingRequest, Placement

_PROMPT_SLACK, _PROMPT_FLOOR = 4, 256
"""A prompt may be this much longer than estimated: a token is one byte of text or more."""
_MOST = 2**32 - 1
"""What a ticket's field holds."""
_UNLIMITED = access_pb2.Quota()
_NEAR, _MOST_NEAR = 0.8, 100
"""Share of a limit from which it is told, and how many of them are."""


class Access:
    """Identifies callers, checks what they may do, and keeps the quotas of tenants and keys."""

    def __init__(self, *, required: bool, ticket_ttl_s: float, certificates: bool = False) -> None:
        """Nobody is known. `certificates`: the router's doors ask callers for one."""
        self.table = AccessTable(certificates=certificates)
        self.holds = LookasideHolds()
        self._required = required
        self._ticket_ttl_s = ticket_ttl_s
        self._accounts: dict[str, Account] = {}
        self._of_keys: dict[str, Account] = {}
        """Of the keys that have been used, by id; one without limits of its own may get some while it is."""
        self._time = asyncio.get_running_loop().time

    def take_table(self, table: control_pb2.RoutingTable, *, kept: bool = False) -> None:
        """The controller sent a whole table; `kept`: it sent it to a router that ran here before."""
        self.table.replace(table.tenants, table.keys)
        self.table.outdated = kept
        self._follow()

    def take_delta(self, delta: control_pb2.RoutingDelta) -> None:
        """The controller sent changes."""
        if delta.tenants or delta.removed_tenants or delta.keys or delta.removed_key_ids:
            self.table.change(delta.tenants, delta.removed_tenants, delta.keys, delta.removed_key_ids)
            self._follow()

    def add_to(self, table: control_pb2.RoutingTable) -> None:
        """Puts the tenants and their keys into a table that is to be kept."""
        table.tenants.extend(self.table.tenants.values())
        table.keys.extend(self.table.keys.values())

    def claimed(self, context: CallContext) -> str:
        """The tenant that a caller says it is; empty: nobody is asked, or it is none that there is."""
        return self.table.claimed(Credentials.of(context)) if self._required else ""

    def identify(self, context: CallContext) -> Caller | None:
        """Who calls; None where nobody is asked.

        It comes before all else: a message that nobody may send is not even decoded.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, TENANT_UNKNOWN.
        """
        return self.table.identify(Credentials.of(context)) if self._required else None

    def is_admin(self, credentials: Credentials) -> bool:
        """Whether a caller may do what administrators may; where nobody is asked, everybody may.

        Raises:
            ChironError: KEY_INVALID, KEY_REVOKED, KEY_EXPIRED.
        """
        return not self._required or self.table.is_admin(credentials)

    def admit(self, caller: Caller | None, *requests: PendingRequest) -> None:
        """Lets a caller's requests in, all or none: sets their limits, and takes what they need of quotas.

        Raises:
            ChironError: NOT_ALLOWED, QUOTA_EXCEEDED; without a time to come again where they never fit.
        """
        if caller is None:
            return
        for request in requests:
            caller.check_allowed(request.model, _class(request), request.priority)
        now = self._time()
        self.holds.expire(now)
        account = self._of_tenant(caller, now)
        key = self._of_key(caller, now)
        new: dict[PendingRequest, int] = {}
        for request in requests:
            tokens = _limit(caller, request)
            if request.lookaside:
                request.hold = self.holds.reclaim(account, request.request_id, tokens, key)
            if request.hold is None:
                new[request] = tokens
        if not new:
            return
        try:
            holds = account.take_all(list(new.values()), now, key)
        except ChironError:
            for request in requests:
                leave(request)
            raise
        for request, hold in zip(new, holds, strict=True):
            request.hold = hold

    def _of_tenant(self, caller: Caller, now: float) -> Account:
        """What the caller's tenant uses."""
        tenant = caller.tenant
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant.quota, now)
        return account

    def _of_key(self, caller: Caller, now: float) -> Account | None:
        """What the caller's key uses, whether it has limits or gets them meanwhile; None: there is no key."""
        key = caller.key
        if key is None:
            return None
        account = self._of_keys.get(key.key_id)
        if account is None:
            account = self._of_keys[key.key_id] = Account(key.quota or _UNLIMITED, now, key.key_id)
        return account

    def batch_caller(self, context: CallContext, *, admin: bool = False) -> Caller | None:
        """Who deals with its tenant's batches; None: with everybody's, as tenancy is off or it is an
        administrator.

        Args:
            context: of the call.
            admin: whether administrators may make it, who have no batches of their own.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, TENANT_UNKNOWN.
        """
        if not self._required:
            return None
        credentials = Credentials.of(context)
        if admin and self.table.is_admin(credentials):
            return None
        return self.table.identify(credentials)

    def admit_item(self, tenant: str, request: PendingRequest) -> None:
        """Lets an item of a tenant's batch in: what it may do is asked again, for it may have waited long.

        It takes nothing of the quota of requests, so that a batch keeps none of its tenant's interactive
        requests out: batch work has limits of its own, and only capacity that nobody else wants.

        Raises:
            ChironError: TENANT_UNKNOWN, NOT_ALLOWED.
        """
        request.tenant = tenant
        owner = self.batch_owner(tenant)
        if owner is not None:
            check_allowed(owner.tenant, request.model, _class(request), request.priority)

    def batch_owner(self, tenant: str, key_id: str = "") -> Caller | None:
        """Whose batch waits, with what the tenant and the key may do now; None where nobody is asked.

        Args:
            tenant: of the batch.
            key_id: of the key with which it was made; empty: none counts.

        Raises:
            ChironError: TENANT_UNKNOWN, KEY_REVOKED.
        """
        if not self._required:
            return None
        known = self.table.tenants.get(tenant)
        if known is None:
            raise ChironError(Reason.TENANT_UNKNOWN, f"tenant {tenant!r} does not exist (any more)")
        key = self.table.held.get(key_id) if key_id else None
        if key_id and (key is None or key.revoked):
            raise ChironError(Reason.KEY_REVOKED, f"key {key_id!r} counts no more")
        return Caller(known, key)

    def batch_weight(self, tenant: str) -> float:
        """Its share of the batch capacity beside others."""
        known = self.table.tenants.get(tenant)
        return (known.quota.batch_weight if known is not None else 0.0) or 1.0

    def weight(self, tenant: str) -> float:
        """Its share of the places that come free, beside others whose interactive requests wait."""
        known = self.table.tenants.get(tenant)
        return (known.quota.weight if known is not None else 0.0) or 1.0

    def near_limits(self) -> list[control_pb2.KeyUse]:
        """The keys' own limits of which little is left, those with the least first."""
        now = self._time()
        found = [
            (share, key_id, limit)
            for key_id, account in self._of_keys.items()
            for limit, share in account.in_use(now).items()
            if share >= _NEAR
        ]
        return [
            control_pb2.KeyUse(key_id=key_id, use=access_pb2.LimitUse(limit=limit, share=share))
            for share, key_id, limit in sorted(found, reverse=True)[:_MOST_NEAR]
        ]

    def hand_out(self, request: PendingRequest, placement: Placement) -> None:
        """The request goes on at a worker, by a ticket."""
        hold, request.hold = request.hold, None
        if hold is not None:
            lapses = self._time() + self._ticket_ttl_s
            self.holds.hand_out(hold, placement.instance_id, request.request_id, lapses)

    def _follow(self) -> None:
        """Quotas in force follow the table; what tenants and keys have used stays used."""
        now = self._time()
        for name, account in list(self._accounts.items()):
            tenant = self.table.tenants.get(name)
            if tenant is not None:
                account.change(tenant.quota, now)
            elif not account.running:
                del self._accounts[name]
        for key_id, account in list(self._of_keys.items()):
            key = self.table.held.get(key_id)
            if key is not None and not key.revoked and (key.quota is not None or account.running):
                account.change(key.quota or _UNLIMITED, now)
            elif key is not None or not account.running:
                del self._of_keys[key_id]


def _limit(caller: Caller, request: PendingRequest) -> int:
    """Sets what a caller's request may have; returns the most tokens that it may use."""
    request.tenant = caller.tenant.name
    request.max_tokens = caller.max_tokens(request.max_tokens)
    if caller.metered:
        request.max_prompt_tokens = min(_PROMPT_SLACK * request.prompt_tokens + _PROMPT_FLOOR, _MOST)
    return request.prompt_tokens + request.choices * request.max_tokens


def _class(request: PendingRequest) -> types_pb2.RequestClass.ValueType:
    return types_pb2.RequestClass.ValueType(int(request.request_class))


def leave(request: PendingRequest | None) -> None:
    """The request's call is over: what it still holds of its quota is free again, and one that never ran
    counts for nothing."""
    if request is not None and request.hold is not None:
        if request.ran:
            request.hold.end()
        else:
            request.hold.undo()
        request.hold = None
