"""`chiron tenants`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chiron.auth.rights import class_name
from chiron.cli.status import to_json
from chiron.cluster.access_admin import AccessAdmin
from chiron.cluster.tenants import read_tenants
from chiron.v1 import access_pb2 as pb

_TENANT_COLUMNS = (
    "TENANT",
    "MODELS",
    "CLASSES",
    "PRIORITY",
    "REQUESTS/S",
    "TOKENS/MIN",
    "AT ONCE",
    "WEIGHT",
    "BATCHES",
)


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
            f"{quota.weight or 1:g}",
            _batches(quota),
        )
    _console().print(table)
    return 0


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
