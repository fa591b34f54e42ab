"""Reads tenants from a TOML file: one table `[tenants.NAME]` per tenant."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiron.config import ConfigError
from chiron.v1 import access_pb2 as pb
from chiron.v1 import types_pb2

_CLASSES = {
    "interactive": types_pb2.REQUEST_CLASS_INTERACTIVE,
    "batch": types_pb2.REQUEST_CLASS_BATCH,
}
_LISTS = ("models", "classes", "subjects")
_COUNTS = ("tokens_per_min", "concurrent", "default_max_tokens", "batch_items", "batch_open", "batch_bytes")
KEYS = (*_LISTS, "most_urgent_priority", "requests_per_s", *_COUNTS, "batch_weight", "weight")
"""Every key of a tenant's table."""


def read_tenants(file: Path) -> list[pb.Tenant]:
    """The tenants of a file, in its order.

    Raises:
        ConfigError: an unreadable file, an unknown key, or a value of the wrong type, by file and key.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    for key in document:
        if key != "tenants":
            raise ConfigError(f"{file}: unknown key {key!r}; a tenant is a table [tenants.NAME]")
    tenants = document.get("tenants")
    if not isinstance(tenants, dict) or not tenants:
        raise ConfigError(f"{file}: no tenant; a tenant is a table [tenants.NAME]")
    return [_tenant(name, table, f"{file} [tenants.{name}]") for name, table in tenants.items()]


def _tenant(name: str, table: Any, where: str) -> pb.Tenant:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: must be a table")
    tenant = pb.Tenant(name=name)
    for key, value in table.items():
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(KEYS))}")
        try:
            _set(tenant, key, value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {key!r}: {error}") from error
    return tenant


def _set(tenant: pb.Tenant, key: str, value: Any) -> None:
    if isinstance(value, bool):
        raise TypeError(f"expected no truth value, not {value!r}")
    if key == "classes":
        unknown = [one for one in _texts(value) if one not in _CLASSES]
        if unknown:
            raise ValueError(f"must be interactive or batch, not {unknown[0]!r}")
        tenant.classes.extend(_CLASSES[one] for one in value)
    elif key in _LISTS:
        getattr(tenant, key).extend(_texts(value))
    elif key == "most_urgent_priority":
        tenant.most_urgent_priority = value
    else:
        setattr(tenant.quota, key, value)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"expected a list of texts, not {value!r}")
    return value
