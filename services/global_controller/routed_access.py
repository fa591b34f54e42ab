"""What routers are told of tenants and API keys."""

from __future__ import annotations

from typing import NamedTuple

from chiron.internal.v1 import control_pb2
from chiron.store import Snapshot
from chiron.v1 import access_pb2


class AccessEntries(NamedTuple):
    """Tenants by name, and their API keys and administrators' by id. Agents have no business at a router."""

    tenants: dict[str, access_pb2.Tenant]
    keys: dict[str, control_pb2.RoutedKey]


NOBODY = AccessEntries({}, {})


class RoutedAccess:
    """Makes the entries anew only where tenants or keys have changed: there may be many, changes are rare."""

    def __init__(self) -> None:
        self._seen: Snapshot | None = None
        self._entries = NOBODY

    def of(self, snapshot: Snapshot) -> AccessEntries:
        """The entries of this state."""
        seen, self._seen = self._seen, snapshot
        if seen is None or seen.tenants is not snapshot.tenants or seen.api_keys is not snapshot.api_keys:
            self._entries = AccessEntries(
                {tenant.name: tenant.parsed_spec() for tenant in snapshot.tenants.values()},
                {
                    key.key_id: control_pb2.RoutedKey(
                        key_id=key.key_id,
                        digest=key.digest,
                        tenant=key.tenant,
                        revoked=key.revoked,
                        role=access_pb2.AccessRole.ValueType(key.role),
                        terms=key.parsed_terms() if key.terms else None,
                    )
                    for key in snapshot.api_keys.values()
                    if key.tenant or key.role == access_pb2.ACCESS_ROLE_ADMIN
                },
            )
        return self._entries
