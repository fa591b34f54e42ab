"""`chiron keys`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from chiron.auth.api_keys import id_of
from chiron.cli.key_terms import KeyOptions, defaults_text, limits_text, near_text, state_text, terms_of
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.cli.status import to_json
from chiron.cluster.access_admin import AccessAdmin
from chiron.v1 import access_pb2 as pb

_ROLES = {
    "admin": pb.ACCESS_ROLE_ADMIN,
    "agent": pb.ACCESS_ROLE_AGENT,
    "router": pb.ACCESS_ROLE_ROUTER,
}
_NONE = KeyOptions()


async def create_key(controller: str, tenant: str, role: str, label: str, options: KeyOptions = _NONE) -> int:
    """Prints the new key alone on stdout, so that a shell can take it; what it is, on stderr."""
    if bool(tenant) == bool(role):
        raise CliError("give either --tenant or --role", EXIT_BAD_START)
    if role and role not in _ROLES:
        raise CliError(f"--role must be one of {', '.join(_ROLES)}, not {role}", EXIT_BAD_START)
    terms, _ = terms_of(options, datetime.now(UTC))
    async with AccessAdmin(controller) as admin:
        made = await admin.create_key(
            tenant, role=_ROLES.get(role, pb.ACCESS_ROLE_UNSPECIFIED), label=label, terms=terms
        )
    print(f"key {made.key.key_id} for {_holder(made.key)}; it is shown only once:", file=sys.stderr)
    print(made.secret)
    return 0


async def set_key(controller: str, key_id: str, options: KeyOptions) -> int:
    """Changes what the options name, and prints what the key has now."""
    _check_id(key_id)
    terms, paths = terms_of(options, datetime.now(UTC))
    if not paths:
        raise CliError("nothing is named that is to change; see chiron keys set --help", EXIT_BAD_START)
    async with AccessAdmin(controller) as admin:
        answer = await admin.set_key(key_id, terms, paths)
    key = answer.key
    told = [
        limits_text(key.terms.limits),
        defaults_text(key.terms.defaults),
        state_text(key, datetime.now(UTC)),
    ]
    print(f"{key_id}: {'changed' if answer.changed else 'unchanged'}: {'; '.join(filter(None, told))}")
    return 0


def _check_id(text: str) -> None:
    """A key in the place of its id would be printed, and kept by whoever keeps what is printed."""
    if key_id := id_of(text):
        raise CliError(
            f"this is the key itself, of which nobody should hear; its id is {key_id}", EXIT_BAD_START
        )


async def revoke_keys(controller: str, key_ids: Sequence[str]) -> int:
    """Revokes keys in the order given."""
    for key_id in key_ids:
        _check_id(key_id)
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
    table = Table(
        "KEY", "HOLDER", "STATE", "CREATED", "LIMITS", "DEFAULTS", "NEAR ITS LIMIT", "LABEL", box=None
    )
    now = datetime.now(UTC)
    for key in keys:
        terms = key.terms
        table.add_row(
            key.key_id,
            _holder(key),
            state_text(key, now),
            key.created.ToDatetime().strftime("%Y-%m-%d %H:%M"),
            limits_text(terms.limits) if key.tenant else "",
            defaults_text(terms.defaults),
            near_text(key),
            key.label,
        )
    console = Console()
    (console if console.is_terminal else Console(file=sys.stdout, width=1000)).print(table)
    return 0


def _holder(key: pb.ApiKey) -> str:
    if key.tenant:
        return f"tenant {key.tenant}"
    return "role " + pb.AccessRole.Name(key.role).removeprefix("ACCESS_ROLE_").lower()
