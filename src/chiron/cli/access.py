"""`chiron keys` and `chiron tenants`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chiron.auth.access import class_name
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.cli.status import to_json
from chiron.cluster.access_admin import AccessAdmin
from chiron.cluster.tenants import read_tenants
from chiron.v1 import access_pb2 as pb

_ROLES = {
    "admin": pb.ACCESS_ROLE_ADMIN,
    "agent": pb.ACCESS_ROLE_AGENT,
    "router": pb.ACCESS_ROLE_ROUTER,
}


_TENANT_COLUMNS = (
    "TENANT",
    "MODELS",
    "CLASSES",
    "PRIORITY",
    "REQUESTS/S",
    "TOKENS/MIN",
    "AT ONCE",
    "BATCHES",
)


async def create_key(controller: str, tenant: str, role: str, label: str) -> int:
    """Prints the new key alone on stdout, so that a shell can take it; what it is, on stderr."""
    if bool(tenant) == bool(role):
        raise CliError("give either --tenant or --role", EXIT_BAD_START)
    if role and role not in _ROLES:
        raise CliError(f"--role must be one of {', '.join(_ROLES)}, not {role}", EXIT_BAD_START)
    async with AccessAdmin(controller) as admin:
        made = await admin.create_key(tenant, role=_ROLES.get(role, pb.ACCESS_ROLE_UNSPECIFIED), label=label)
    print(f"key {made.key.key_id} for {_holder(made.key)}; it is shown only once:", file=sys.stderr)
    print(made.secret)
    return 0


async def revoke_keys(controller: str, key_ids: Sequence[str]) -> int:
    """Revokes keys in the order given."""
    async with AccessAdmin(controller) as admin:
        for key_id in key_ids:
            await admin.revoke_key(key_id)
            print(f"{key_id}: revoked")
    return 0


async def list_keys(controller: str, *, as_json: bool) -> int:
    """Prints every key, the oldest first."""
    async with AccessAdmin(controller) as admin:
        keys = await admin.list_keys()
    if as_json:
        print(to_json(pb.ListKeysResponse(keys=keys)))
        return 0
    table = Table("KEY", "HOLDER", "STATE", "CREATED", "LABEL", box=None)
    for key in keys:
        created = key.created.ToDatetime().strftime("%Y-%m-%d %H:%M")
        state = "revoked" if key.revoked else "in force"
        table.add_row(key.key_id, _holder(key), state, created, key.label)
    _console().print(table)
    return 0


async def apply_tenants(controller: str, files: Sequence[Path]) -> int:
    """Applies every tenant of the files; nothing is applied when one of the files is wrong."""
    tenants = [tenant for file in files for tenant in read_tenants(file)]
    async with AccessAdmin(controller) as admin:
        for tenant in tenants:
            changed = await admin.apply_tenant(tenant)
            print(f"{tenant.name}: {'applied' if changed else 'unchanged'}")
    return 0


async def delete_tenants(controller: str, names: Sequence[str]) -> int:
    """Deletes tenants in the order given."""
    async with AccessAdmin(controller) as admin:
        for name in names:
            await admin.delete_tenant(name)
            print(f"{name}: deleted")
    return 0


async def list_tenants(controller: str, *, as_json: bool) -> int:
    """Prints every tenant with what it may do."""
    async with AccessAdmin(controller) as admin:
        tenants = await admin.list_tenants()
    if as_json:
        print(to_json(pb.ListTenantsResponse(tenants=tenants)))
        return 0
    table = Table(*_TENANT_COLUMNS, box=None)
    for tenant in tenants:
        quota = tenant.quota
        table.add_row(
            tenant.name,
            ", ".join(tenant.models) or "none",
            ", ".join(map(class_name, tenant.classes)) or "both",
            f">= {tenant.most_urgent_priority}" if tenant.HasField("most_urgent_priority") else "any",
            _limit(quota.requests_per_s),
            _limit(quota.tokens_per_min),
            _limit(quota.concurrent),
            _batches(quota),
        )
    _console().print(table)
    return 0


def _holder(key: pb.ApiKey) -> str:
    if key.tenant:
        return f"tenant {key.tenant}"
    return "role " + pb.AccessRole.Name(key.role).removeprefix("ACCESS_ROLE_").lower()


def _batches(quota: pb.Quota) -> str:
    """What limits batches, without what does not."""
    parts = [f"{quota.batch_items} items"] if quota.batch_items else []
    parts += [f"{quota.batch_open} open"] if quota.batch_open else []
    parts += [f"{quota.batch_bytes} bytes"] if quota.batch_bytes else []
    parts += [f"weight {quota.batch_weight:g}"] if quota.batch_weight else []
    return ", ".join(parts) or "no limit"


def _limit(value: float) -> str:
    return f"{value:g}" if value else "no limit"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(file=sys.stdout, width=1000)
