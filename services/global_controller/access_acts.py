"""What administrators ask for about tenants and API keys, as writes. Errors are ChironErrors."""

from __future__ import annotations

import dataclasses
import math
import re

from chiron.auth.api_keys import NewKey
from chiron.auth.rights import EVERY_MODEL
from chiron.requests.validation import MAX_PRIORITY
from chiron.rpc.errors import ChironError, Reason
from chiron.store import ApiKeyRecord, Kind, Snapshot, TenantRecord
from chiron.v1 import access_pb2, types_pb2
from services.global_controller.key_terms import changed, check_terms
from services.global_controller.view import Act
from services.global_controller.writer import Draft

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_LABEL_CHARACTERS = 200
_CLASSES = (types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH)


def apply_tenant(snapshot: Snapshot, tenant: access_pb2.Tenant) -> Draft | None:
    """Creates a tenant or replaces what it may do; None: nothing changes."""
    if violations := check_tenant(tenant, snapshot):
        raise ChironError.invalid(violations)
    record = TenantRecord(tenant.name, tenant.SerializeToString(deterministic=True))
    before = snapshot.tenants.get(tenant.name)
    if record == before:
        return None
    verb = "new tenant" if before is None else "other limits"
    models = ", ".join(tenant.models) or "none"
    return Draft(puts=[record], acts=[Act("apply_tenant", f"{verb}: {tenant.name}, models: {models}")])


def delete_tenant(snapshot: Snapshot, name: str) -> Draft:
    """Removes a tenant without keys in force: its name may come to mean somebody else."""
    if name not in snapshot.tenants:
        raise ChironError(Reason.TENANT_NOT_FOUND, _no_tenant(snapshot, name))
    live = sum(key.tenant == name and not key.revoked for key in snapshot.api_keys.values())
    if live:
        raise ChironError(Reason.BUSY, f"tenant {name!r} has {live} keys that are not revoked: revoke them")
    return Draft(deletes=[(Kind.TENANT, name)], acts=[Act("delete_tenant", f"tenant {name}")])


def create_key(
    snapshot: Snapshot, request: access_pb2.CreateKeyRequest, new: NewKey, created_unix_ms: int
) -> Draft:
    """Puts a key in force."""
    if bool(request.tenant) == bool(request.role):
        raise ChironError.invalid([("tenant", "either a tenant or a role is required")])
    if request.role not in access_pb2.AccessRole.values():
        raise ChironError.invalid([("role", f"unknown value {request.role}")])
    if len(request.label) > _LABEL_CHARACTERS:
        raise ChironError.invalid([("label", f"must have at most {_LABEL_CHARACTERS} characters")])
    if request.tenant and request.tenant not in snapshot.tenants:
        raise ChironError(Reason.TENANT_NOT_FOUND, _no_tenant(snapshot, request.tenant))
    _check_terms(snapshot, request.tenant, request.terms, created_unix_ms)
    record = ApiKeyRecord(
        new.key_id,
        new.digest,
        request.tenant,
        request.role,
        request.label,
        created_unix_ms,
        terms=request.terms.SerializeToString(deterministic=True),
    )
    return Draft(puts=[record], acts=[Act("create_key", f"API key {new.key_id} for {holder(record)}")])


def set_key(snapshot: Snapshot, request: access_pb2.SetKeyRequest, now_ms: int) -> Draft | None:
    """Changes what a key in force has of its own; None: it is so already."""
    record = snapshot.api_keys.get(request.key_id)
    if record is None:
        raise ChironError(Reason.KEY_NOT_FOUND, f"no API key {request.key_id!r}")
    if record.revoked:
        raise ChironError.invalid([("key_id", f"API key {request.key_id} was revoked, which is for good")])
    if not request.fields:
        raise ChironError.invalid([("fields", "nothing is named that is to change")])
    before = record.parsed_terms()
    terms = changed(before, request.terms, request.fields)
    if terms == before:
        return None
    if not record.tenant or record.tenant in snapshot.tenants:
        _check_terms(snapshot, record.tenant, terms, now_ms, before)
    after = dataclasses.replace(record, terms=terms.SerializeToString(deterministic=True))
    what = ", ".join(sorted(set(request.fields)))
    return Draft(puts=[after], acts=[Act("set_key", f"API key {record.key_id} of {holder(record)}: {what}")])


def revoke_key(snapshot: Snapshot, key_id: str) -> Draft | None:
    """Takes a key out of force for good; None: it is already."""
    record = snapshot.api_keys.get(key_id)
    if record is None:
        raise ChironError(Reason.KEY_NOT_FOUND, f"no API key {key_id!r}")
    if record.revoked:
        return None
    revoked = dataclasses.replace(record, revoked=True)
    return Draft(puts=[revoked], acts=[Act("revoke_key", f"API key {key_id} of {holder(record)}")])


def _check_terms(
    snapshot: Snapshot,
    tenant: str,
    terms: access_pb2.KeyTerms,
    now_ms: int,
    before: access_pb2.KeyTerms | None = None,
) -> None:
    """Raises ChironError for what is wrong with the terms, and was not so before."""
    spec = snapshot.tenants[tenant].parsed_spec() if tenant else None
    known = check_terms(before, spec, now_ms) if before is not None else []
    if violations := [one for one in check_terms(terms, spec, now_ms) if one not in known]:
        raise ChironError.invalid(violations)


def check_tenant(tenant: access_pb2.Tenant, snapshot: Snapshot) -> list[tuple[str, str]]:
    """Every violation of a Tenant; empty: none."""
    found: list[tuple[str, str]] = []
    if not _NAME.fullmatch(tenant.name):
        found.append(("name", "must be 1 to 63 characters of [a-z0-9.-], starting with a letter or digit"))
    found += [
        ("models", f"{model!r} is no model's name, and not {EVERY_MODEL!r}")
        for model in tenant.models
        if model != EVERY_MODEL and not _NAME.fullmatch(model)
    ]
    if any(value not in _CLASSES for value in tenant.classes):
        found.append(("classes", "must be interactive or batch"))
    if abs(tenant.most_urgent_priority) > MAX_PRIORITY:
        found.append(("most_urgent_priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}"))
    for name in ("requests_per_s", "batch_weight", "weight"):
        value: float = getattr(tenant.quota, name)
        if not (math.isfinite(value) and value >= 0):
            found.append((f"quota.{name}", f"must be a number >= 0, not {value:g}"))
    taken = {
        subject: other.name
        for other in (record.parsed_spec() for record in snapshot.tenants.values())
        if other.name != tenant.name
        for subject in other.subjects
    }
    for subject in tenant.subjects:
        if "://" not in subject:
            found.append(("subjects", f"{subject!r} is no URI"))
        elif subject in taken:
            found.append(("subjects", f"{subject!r} stands for tenant {taken[subject]!r} already"))
    return found


def holder(record: ApiKeyRecord) -> str:
    """Whom a key stands for, for people."""
    if record.tenant:
        return f"tenant {record.tenant}"
    return "role " + access_pb2.AccessRole.Name(record.role).removeprefix("ACCESS_ROLE_").lower()


def _no_tenant(snapshot: Snapshot, name: str) -> str:
    return f"no tenant {name!r}; there are: {', '.join(sorted(snapshot.tenants)) or 'none'}"
