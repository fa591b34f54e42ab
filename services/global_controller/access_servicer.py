"""AccessService: tenants and API keys. Who may call it, `services.global_controller.guard` has decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from chiron.auth.api_keys import NewKey
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.store import ApiKeyRecord, Snapshot
from chiron.v1 import access_pb2 as pb
from chiron.v1 import access_pb2_grpc
from services.global_controller import access_acts
from services.global_controller.registry import RouterLink
from services.global_controller.seat import Seat
from services.global_controller.writer import Draft

Context = grpc.aio.ServicerContext[Any, Any]


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Each act is on record once its call returns."""

    def __init__(self, seat: Seat) -> None:
        """Its acts are those of the controller that leads."""
        self._seat = seat

    async def ApplyTenant(self, request: pb.ApplyTenantRequest, context: Context) -> pb.ApplyTenantResponse:
        """Creates a tenant or replaces what it may do."""
        changed = False

        def build(snapshot: Snapshot) -> Draft | None:
            nonlocal changed
            draft = access_acts.apply_tenant(snapshot, request.tenant)
            changed = draft is not None
            return draft

        await self._act(context, build)
        return pb.ApplyTenantResponse(changed=changed)

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: Context
    ) -> pb.DeleteTenantResponse:
        """Removes a tenant."""
        await self._act(context, lambda snapshot: access_acts.delete_tenant(snapshot, request.name))
        return pb.DeleteTenantResponse()

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        """The tenants by name."""
        tenants = self._seat.leading().snapshot.tenants
        return pb.ListTenantsResponse(tenants=[tenants[name].parsed_spec() for name in sorted(tenants)])

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Makes a key; the answer is the only place where its secret ever appears."""
        new, now_ms = NewKey.draw(), time.time_ns() // 1_000_000
        await self._act(context, lambda snapshot: access_acts.create_key(snapshot, request, new, now_ms))
        return pb.CreateKeyResponse(key=await self._key(new.key_id, context), secret=new.text)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Takes a key out of force."""
        await self._act(context, lambda snapshot: access_acts.revoke_key(snapshot, request.key_id))
        return pb.RevokeKeyResponse(key=await self._key(request.key_id, context))

    async def SetKey(self, request: pb.SetKeyRequest, context: Context) -> pb.SetKeyResponse:
        """Changes what a key has of its own."""
        changed, now_ms = False, time.time_ns() // 1_000_000

        def build(snapshot: Snapshot) -> Draft | None:
            nonlocal changed
            draft = access_acts.set_key(snapshot, request, now_ms)
            changed = draft is not None
            return draft

        await self._act(context, build)
        return pb.SetKeyResponse(key=await self._key(request.key_id, context), changed=changed)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """The keys, the oldest first."""
        leading = self._seat.leading()
        keys = sorted(leading.snapshot.api_keys.values(), key=lambda key: (key.created_unix_ms, key.key_id))
        near = near_limits(leading.registry.routers.values())
        return pb.ListKeysResponse(keys=[_shown(key, near.get(key.key_id, ())) for key in keys])

    async def _act(self, context: Context, build: Callable[[Snapshot], Draft | None]) -> None:
        try:
            await self._seat.leading().write(build)
        except ChironError as error:
            await abort(context, error)

    async def _key(self, key_id: str, context: Context) -> pb.ApiKey:
        record = self._seat.leading().snapshot.api_keys.get(key_id)
        if record is None:
            await abort(context, ChironError(Reason.KEY_NOT_FOUND, f"API key {key_id!r} has just gone"))
        return _shown(record)


def near_limits(routers: Iterable[RouterLink]) -> dict[str, list[pb.LimitUse]]:
    """Key → the limits of which a router's last report tells that little is left."""
    found: dict[str, list[pb.LimitUse]] = {}
    for link in routers:
        for told in link.report.near_limits:
            use = pb.LimitUse(limit=told.use.limit, share=told.use.share, router_id=link.router_id)
            found.setdefault(told.key_id, []).append(use)
    return found


def _shown(record: ApiKeyRecord, near: Iterable[pb.LimitUse] = ()) -> pb.ApiKey:
    shown = pb.ApiKey(
        key_id=record.key_id,
        tenant=record.tenant,
        role=record.role,
        label=record.label,
        revoked=record.revoked,
        terms=record.parsed_terms() if record.terms else None,
        near_limits=near,
    )
    shown.created.FromMilliseconds(record.created_unix_ms)
    return shown
