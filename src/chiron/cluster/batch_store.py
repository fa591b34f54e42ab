"""Where the batches of a local cluster are kept."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from chiron.config.loader import override_variable

NONE = "none"
"""Instead of a store: no router has a queue."""
_KEY = "batch.store"


def is_configured(config: Path | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the routers' configuration says where batches are kept.

    Args:
        config: TOML file of the services; read again, and checked, by them.
        environ: variables that the services will see.
    """
    if override_variable("router", _KEY) in environ:
        return True
    if config is None:
        return False
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8")).get("router", {}).get("batch", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError):
        return False
    return isinstance(table, dict) and "store" in table


def kept_by_one(store: str | None) -> bool:
    """Whether the first router alone keeps batches. store: as for `router_keys`."""
    return store is not None and (store == "" or store.startswith("sqlite:"))


def who_keeps(store: str | None, addresses: Sequence[str], urls: Sequence[str]) -> str:
    """Which router of several keeps batches, for a person; empty: all alike.

    Args:
        store: as for `router_keys`.
        addresses: of the routers.
        urls: of their HTTP doors, in the same order; empty: they have none.
    """
    if len(addresses) < 2 or not kept_by_one(store):
        return ""
    where = " ".join([addresses[0], *(f"({url}/v1)" for url in urls[:1])])
    return f"batches: router {where} alone keeps them; several can on a PostgreSQL store (--batch-store)"


def router_keys(store: str | None, directory: Path, index: int) -> dict[str, str]:
    """What a router is told of the store: one in a file serves the first router alone.

    Args:
        store: as `[router.batch] store`, or `none`; empty: a file in the directory; None: as configured.
        directory: of the run.
        index: of the router.
    """
    if store is None:
        return {}
    if store == NONE:
        return {_KEY: ""}
    if index and kept_by_one(store):
        return {}
    return {_KEY: store or f"sqlite:{directory / 'batches.db'}"}
