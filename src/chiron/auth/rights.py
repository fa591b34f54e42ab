"""What a tenant, or one of its keys, may ask for. Pure."""

from __future__ import annotations

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2

EVERY_MODEL = "*"


def allows_model(tenant: access_pb2.Tenant, model: str) -> bool:
    """Whether the tenant may use the model; none named: no model."""
    return EVERY_MODEL in tenant.models or model in tenant.models


def allows_key_model(limits: access_pb2.KeyLimits, model: str) -> bool:
    """Whether a key leaves its tenant the model; none named: every model."""
    return not limits.models or EVERY_MODEL in limits.models or model in limits.models


def check_allowed(
    tenant: access_pb2.Tenant, model: str, request_class: types_pb2.RequestClass.ValueType, priority: int
) -> None:
    """Raises ChironError (NOT_ALLOWED) that names what the tenant may not ask for, and what it may."""
    if not allows_model(tenant, model):
        _deny_model(f"tenant {tenant.name!r}", tenant, model)
    check_class(tenant, request_class, priority)


def check_class(
    tenant: access_pb2.Tenant, request_class: types_pb2.RequestClass.ValueType, priority: int
) -> None:
    """Raises ChironError (NOT_ALLOWED) for a class or a priority that the tenant may not ask for."""
    _check_class(tenant, tenant.name, request_class, priority, key=False)


def check_key_allowed(
    key_id: str,
    limits: access_pb2.KeyLimits,
    model: str,
    request_class: types_pb2.RequestClass.ValueType,
    priority: int,
) -> None:
    """As `check_allowed`, for what a key leaves of its tenant's rights."""
    if not allows_key_model(limits, model):
        _deny_model(f"API key {key_id}", limits, model)
    check_key_class(key_id, limits, request_class, priority)


def check_key_class(
    key_id: str, limits: access_pb2.KeyLimits, request_class: types_pb2.RequestClass.ValueType, priority: int
) -> None:
    """As `check_class`, for what a key leaves of its tenant's rights."""
    _check_class(limits, key_id, request_class, priority, key=True)


def class_name(value: types_pb2.RequestClass.ValueType) -> str:
    """`interactive` or `batch`."""
    return types_pb2.RequestClass.Name(value).removeprefix("REQUEST_CLASS_").lower()


def _check_class(
    rights: access_pb2.Tenant | access_pb2.KeyLimits,
    name: str,
    request_class: types_pb2.RequestClass.ValueType,
    priority: int,
    *,
    key: bool,
) -> None:
    if request_class == types_pb2.REQUEST_CLASS_UNSPECIFIED:
        request_class = types_pb2.REQUEST_CLASS_INTERACTIVE
    if rights.classes and request_class not in rights.classes:
        names = ", ".join(map(class_name, rights.classes))
        _deny(_whose(name, key=key), f"class {class_name(request_class)}", f"its classes are: {names}")
    if rights.HasField("most_urgent_priority") and priority < rights.most_urgent_priority:
        most = rights.most_urgent_priority
        _deny(_whose(name, key=key), f"priority {priority}", f"its most urgent is {most}")


def _whose(name: str, *, key: bool) -> str:
    return f"API key {name}" if key else f"tenant {name!r}"


def _deny_model(whose: str, rights: access_pb2.Tenant | access_pb2.KeyLimits, model: str) -> None:
    there = ", ".join(sorted(rights.models)) or "none"
    _deny(whose, f"model {model!r}", f"its models are: {there}")


def _deny(whose: str, what: str, may: str) -> None:
    raise ChironError(Reason.NOT_ALLOWED, f"{whose} may not use {what}: {may}")
