"""An administrator's calls about tenants and API keys, with one clear line for every failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from chiron.cluster.admin import ClusterAdmin
from chiron.v1 import access_pb2 as pb
from chiron.v1 import access_pb2_grpc


class AccessAdmin(ClusterAdmin):
    """AccessService beside ClusterService; use it as an async context manager."""

    async def apply_tenant(self, tenant: pb.Tenant) -> bool:
        """Creates the tenant or replaces what it may do; False when nothing changed."""
        request = pb.ApplyTenantRequest(tenant=tenant)
        answer: pb.ApplyTenantResponse = await self._access(
            lambda stub, timeout: stub.ApplyTenant(request, timeout=timeout)
        )
        return answer.changed

    async def delete_tenant(self, name: str) -> None:
        """Removes a tenant without keys in force."""
        request = pb.DeleteTenantRequest(name=name)
        await self._access(lambda stub, timeout: stub.DeleteTenant(request, timeout=timeout))

    async def list_tenants(self) -> list[pb.Tenant]:
        """Every tenant."""
        request = pb.ListTenantsRequest()
        answer = await self._access(lambda stub, timeout: stub.ListTenants(request, timeout=timeout))
        return list(answer.tenants)

    async def create_key(
        self,
        tenant: str = "",
        *,
        role: pb.AccessRole.ValueType = pb.ACCESS_ROLE_UNSPECIFIED,
        label: str = "",
        terms: pb.KeyTerms | None = None,
    ) -> pb.CreateKeyResponse:
        """Makes a key for a tenant or a role; its secret is in the answer and nowhere else."""
        request = pb.CreateKeyRequest(tenant=tenant, role=role, label=label, terms=terms)
        answer: pb.CreateKeyResponse = await self._access(
            lambda stub, timeout: stub.CreateKey(request, timeout=timeout)
        )
        return answer

    async def set_key(self, key_id: str, terms: pb.KeyTerms, fields: Iterable[str]) -> pb.SetKeyResponse:
        """Changes a key in force: the fields named become what `terms` has."""
        request = pb.SetKeyRequest(key_id=key_id, terms=terms, fields=fields)
        answer: pb.SetKeyResponse = await self._access(
            lambda stub, timeout: stub.SetKey(request, timeout=timeout)
        )
        return answer

    async def revoke_key(self, key_id: str) -> pb.ApiKey:
        """Takes a key out of force for good."""
        request = pb.RevokeKeyRequest(key_id=key_id)
        answer: pb.RevokeKeyResponse = await self._access(
            lambda stub, timeout: stub.RevokeKey(request, timeout=timeout)
        )
        return answer.key

    async def list_keys(self) -> list[pb.ApiKey]:
        """Every key, without its secret."""
        request = pb.ListKeysRequest()
        answer = await self._access(lambda stub, timeout: stub.ListKeys(request, timeout=timeout))
        return list(answer.keys)

    async def _access(self, make: Callable[[Any, float], Any]) -> Any:
        return await self._call(make, access_pb2_grpc.AccessServiceStub)
