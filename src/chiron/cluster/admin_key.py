"""The API key by which a local cluster's own calls and services are let in, whatever `[auth]` says."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

_NAME = "auth.admin_key_file"


def admin_key_file(directory: Path, config: Path | None, settings: Mapping[str, str]) -> Path:
    """The file that the controllers will read: as set, else one in the run's folder.

    Args:
        directory: of the run.
        config: TOML file of the services; read again, and checked, by them.
        settings: overrides of the controllers.
    """
    if _NAME in settings:
        return Path(settings[_NAME])
    if config is not None:
        try:
            document = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            document = {}
        for table in (document.get("controller", {}), document):
            named = table.get("auth", {}).get("admin_key_file") if isinstance(table, dict) else None
            if isinstance(named, str):
                return Path(named).expanduser()
    return directory / "admin.key"
