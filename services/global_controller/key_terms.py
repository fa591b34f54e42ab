"""What keys have of their own, limits, defaults and an end: checked and changed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import Message

from chiron.auth.rights import EVERY_MODEL, class_name
from chiron.requests.validation import MAX_NAME, MAX_PRIORITY, Violation, check_slo
from chiron.rpc.errors import ChironError
from chiron.v1 import access_pb2, types_pb2

_CLASSES = (types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH)
_MOST_MODELS = 1000
_NO_TTFT = (
    "a key's SLO is for requests of its class, batch, which are promised a whole result (deadline_s) and no "
    "first token; leave it out, or the class"
)


def check_terms(terms: access_pb2.KeyTerms, tenant: access_pb2.Tenant | None, now_ms: int) -> list[Violation]:
    """Every violation of a key's terms; empty: none.

    Args:
        terms: of the key.
        tenant: whose key it is; None: it has a role instead.
        now_ms: by the wall clock, since the epoch, in milliseconds.
    """
    found: list[Violation] = []
    if terms.HasField("expires"):
        try:
            if terms.expires.ToMilliseconds() <= now_ms:
                found.append(("expires", "must lie in the future"))
        except ValueError as error:
            found.append(("expires", f"is no time: {error}"))
    if tenant is None:
        found += [
            (name, "a key with a role has none: they are of tenants' keys")
            for name in ("limits", "defaults")
            if terms.HasField(name)
        ]
        return found
    return found + _check_limits(terms.limits, tenant) + _check_defaults(terms, tenant)


def changed(
    before: access_pb2.KeyTerms, after: access_pb2.KeyTerms, fields: Iterable[str]
) -> access_pb2.KeyTerms:
    """What is in force with the fields as they are in `after`.

    Raises ChironError (INVALID_ARGUMENT) for a path that there is not.
    """
    result = access_pb2.KeyTerms()
    result.CopyFrom(before)
    for path in fields:
        source: Message = after
        target: Message = result
        *folders, name = path.split(".")
        for folder in folders:
            source, target = _part(source, folder, path), _part(target, folder, path)
        if name not in target.DESCRIPTOR.fields_by_name:
            raise _unknown(path)
        given = {field.name: value for field, value in source.ListFields()}
        target.ClearField(name)
        if name in given:
            target.MergeFrom(type(source)(**{name: given[name]}))
    _prune(result)
    return result


def _part(message: Message, name: str, path: str) -> Message:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None or field.message_type is None or field.is_repeated:
        raise _unknown(path)
    part: Message = getattr(message, name)
    return part


def _prune(message: Message) -> None:
    """Empty parts are none: what is set and unset again leaves nothing behind."""
    for field, value in message.ListFields():
        if isinstance(value, Message) and field.name != "expires":
            _prune(value)
            if not value.ListFields():
                message.ClearField(field.name)


def _unknown(path: str) -> ChironError:
    return ChironError.invalid([("fields", f"{path!r} is no path within KeyTerms")])


def _check_limits(limits: access_pb2.KeyLimits, tenant: access_pb2.Tenant) -> list[Violation]:
    found: list[Violation] = []
    rate = limits.requests_per_s
    if not (math.isfinite(rate) and rate >= 0):
        found.append(("limits.requests_per_s", f"must be a number >= 0, not {rate:g}"))
    if len(limits.models) > _MOST_MODELS:
        found.append(("limits.models", f"must be at most {_MOST_MODELS}, not {len(limits.models)}"))
        return found
    found += [
        (
            "limits.models",
            f"{model!r} is none of tenant {tenant.name}'s: {', '.join(tenant.models) or 'none'}",
        )
        for model in limits.models
        if model != EVERY_MODEL
        and (len(model) > MAX_NAME or not (EVERY_MODEL in tenant.models or model in tenant.models))
    ]
    for value in limits.classes:
        if value not in _CLASSES:
            found.append(("limits.classes", "must be interactive or batch"))
        elif tenant.classes and value not in tenant.classes:
            there = ", ".join(map(class_name, tenant.classes))
            found.append(
                ("limits.classes", f"{class_name(value)!r} is none of tenant {tenant.name}'s: {there}")
            )
    if limits.HasField("most_urgent_priority"):
        found += _check_priority("limits.most_urgent_priority", limits.most_urgent_priority, tenant)
    return found


def _check_defaults(terms: access_pb2.KeyTerms, tenant: access_pb2.Tenant) -> list[Violation]:
    defaults, limits = terms.defaults, terms.limits
    found = [(f"defaults.{field}", text) for field, text in check_slo(defaults.slo)]
    known = (types_pb2.REQUEST_CLASS_UNSPECIFIED, *_CLASSES)
    if defaults.request_class not in known:
        found.append(("defaults.request_class", "must be interactive or batch"))
    elif defaults.request_class:
        kind = defaults.request_class
        for allowed in (tenant.classes, limits.classes):
            if allowed and kind not in allowed:
                there = ", ".join(map(class_name, allowed))
                found.append(
                    ("defaults.request_class", f"{class_name(kind)!r} is none that the key may use: {there}")
                )
                break
    if defaults.request_class == types_pb2.REQUEST_CLASS_BATCH and defaults.slo.HasField("ttft_ms"):
        found.append(("defaults.slo.ttft_ms", _NO_TTFT))
    if defaults.HasField("priority"):
        found += _check_priority("defaults.priority", defaults.priority, tenant)
        if limits.HasField("most_urgent_priority") and defaults.priority < limits.most_urgent_priority:
            most = limits.most_urgent_priority
            found.append(("defaults.priority", f"the most urgent that the key may use is {most}"))
    return found


def _check_priority(field: str, priority: int, tenant: access_pb2.Tenant) -> list[Violation]:
    if abs(priority) > MAX_PRIORITY:
        return [(field, f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}")]
    if tenant.HasField("most_urgent_priority") and priority < tenant.most_urgent_priority:
        most = tenant.most_urgent_priority
        return [(field, f"the most urgent that tenant {tenant.name} may use is {most}")]
    return []
