"""Who may use this router, and how much."""

from __future__ import annotations

import asyncio

from chiron.auth.access import AccessTable, check_allowed
from chiron.auth.credentials import CallContext, Credentials
from chiron.auth.quotas import Account, metered_max_tokens
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2
from services.router.holds import LookasideHolds
from services.router.request import PendingRequest, Placement

_PROMPT_SLACK, _PROMPT_FLOOR = 4, 256
"""A prompt may be this much longer than estimated: a token is one byte of text or more."""
_MOST = 2**32 - 1
"""What a ticket's field holds."""


class Access:
    """Identifies callers, checks what their tenant may do, and keeps its quota."""

    def __init__(self, *, required: bool, ticket_ttl_s: float) -> None:
        self.table = AccessTable()
        self.holds = LookasideHolds()
        self._required = required
        self._ticket_ttl_s = ticket_ttl_s
        self._accounts: dict[str, Account] = {}
        self._time = asyncio.get_running_loop().time

    def take_table(self, table: control_pb2.RoutingTable) -> None:
        """The controller sent a whole table."""
        self.table.replace(table.tenants, table.keys)
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

    def identify(self, context: CallContext) -> access_pb2.Tenant | None:
        """The caller's tenant; None where nobody is asked.

        It comes before all else: a message that nobody may send is not even decoded.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, TENANT_UNKNOWN.
        """
        return self.table.identify(Credentials.of(context)) if self._required else None

    def admit(self, tenant: access_pb2.Tenant | None, request: PendingRequest) -> None:
        """Lets a tenant's request in: sets its limits, and takes what it needs of the quota.

        Raises:
            ChironError: NOT_ALLOWED, QUOTA_EXCEEDED.
        """
        if tenant is None:
            return
        _check(tenant, request)
        now = self._time()
        self.holds.expire(now)
        request.tenant = tenant.name
        request.max_tokens = metered_max_tokens(tenant.quota, request.max_tokens)
        if tenant.quota.tokens_per_min:
            request.max_prompt_tokens = min(_PROMPT_SLACK * request.prompt_tokens + _PROMPT_FLOOR, _MOST)
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant.quota, now)
        tokens = request.prompt_tokens + request.choices * request.max_tokens
        reclaimed = self.holds.reclaim(account, request.request_id, tokens) if request.lookaside else None
        request.hold = reclaimed or account.take(tokens, now)

    def batch_tenant(self, context: CallContext, *, admin: bool = False) -> access_pb2.Tenant | None:
        """Whose batches a caller deals with; None: everybody's, as tenancy is off or it is an administrator.

        Args:
            context: of the call.
            admin: whether administrators may make it, who have no batches of their own.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, TENANT_UNKNOWN.
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
        if not self._required:
            return
        known = self.table.tenants.get(tenant)
        if known is None:
            raise ChironError(Reason.TENANT_UNKNOWN, f"tenant {tenant!r} does not exist (any more)")
        _check(known, request)

    def batch_weight(self, tenant: str) -> float:
        """Its share of the batch capacity beside others."""
        known = self.table.tenants.get(tenant)
        return (known.quota.batch_weight if known is not None else 0.0) or 1.0

    def hand_out(self, request: PendingRequest, placement: Placement) -> None:
        """The request goes on at a worker, by a ticket."""
        hold, request.hold = request.hold, None
        if hold is not None:
            lapses = self._time() + self._ticket_ttl_s
            self.holds.hand_out(hold, placement.instance_id, request.request_id, lapses)

    def _follow(self) -> None:
        """Quotas in force follow the table; what tenants have used stays used."""
        now = self._time()
        for name, account in list(self._accounts.items()):
            tenant = self.table.tenants.get(name)
            if tenant is not None:
                account.change(tenant.quota, now)
            elif not account.running:
                del self._accounts[name]


def _check(tenant: access_pb2.Tenant, request: PendingRequest) -> None:
    kind = types_pb2.RequestClass.ValueType(int(request.request_class))
    check_allowed(tenant, request.model, kind, request.priority)


def leave(request: PendingRequest | None) -> None:
    """The request's call is over: what it still holds of its quota is free again."""
    if request is not None and request.hold is not None:
        request.hold.end()
        request.hold = None
