"""Finds out why an engine process ended.

vLLM's front end learns only that its engine process exited; the cause is in that process's log. A logging
configuration, inherited by vLLM's processes, writes the first logged exception to a file.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_CAUSE = "cause"


class FirstErrorHandler(logging.Handler):
    """Writes the first record that carries an exception to a file, as one line."""

    def __init__(self, path: str) -> None:
        super().__init__(level=logging.ERROR)
        self._path = Path(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the first exception of all processes that share the file."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        text = " ".join(str(error).split())
        # Another process may have been first, and the engine may be closed already.
        with contextlib.suppress(FileExistsError, FileNotFoundError), self._path.open("x") as file:
            file.write(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class FailureLog:
    """The first exception that a process of one engine logged.

    Args:
        environ: gains the logging configuration until `inherited`. An operator's own configuration
            (VLLM_LOGGING_CONFIG_PATH) is left alone; then no cause is ever found.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not environ.get(_VARIABLE):
            self._folder = tempfile.TemporaryDirectory(prefix="chiron-vllm-")
            file = Path(self._folder.name) / "logging.json"
            file.write_text(json.dumps(_logging_config(Path(self._folder.name) / _CAUSE)))
            environ[_VARIABLE] = str(file)

    def inherited(self) -> None:
        """The engine's processes run: those that start from here on are no longer its own."""
        if self._folder is not None:
            self._environ.pop(_VARIABLE, None)

    def cause(self) -> str:
        """One line; empty when no exception was logged."""
        if self._folder is None:
            return ""
        try:
            return (Path(self._folder.name) / _CAUSE).read_text().strip()
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Removes the file; the engine's processes are gone."""
        if self._folder is not None:
            self._folder.cleanup()


def _logging_config(path: Path) -> dict[str, Any]:
    """vLLM's own configuration and the handler."""
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
    config["handlers"]["chiron"] = {"()": f"{__name__}.FirstErrorHandler", "path": str(path)}
    config["loggers"]["vllm"]["handlers"].append("chiron")
    return config
