"""Finds out why an engine process could not start.

vLLM's front end learns only that its engine process exited; the cause is in that process's log. A logging
configuration, inherited by vLLM's processes, writes the first logged exception to a file.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"


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
        try:
            with self._path.open("x") as file:
                file.write(f"{type(error).__name__}: {text}" if text else type(error).__name__)
        except FileExistsError:
            return


class FailureLog:
    """The first exception that a process of the engine logged."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def cause(self) -> str:
        """One line; empty when no exception was logged."""
        if self._path is None or not self._path.exists():
            return ""
        return self._path.read_text().strip()


@contextmanager
def recorded_failure(environ: MutableMapping[str, str]) -> Iterator[FailureLog]:
    """Records failures of engine processes started within the block.

    An operator's own logging configuration (VLLM_LOGGING_CONFIG_PATH) is left alone; then no cause is found.
    """
    if environ.get(_VARIABLE):
        yield FailureLog(None)
        return
    with tempfile.TemporaryDirectory(prefix="chiron-vllm-") as folder:
        path = Path(folder) / "cause"
        file = Path(folder) / "logging.json"
        file.write_text(json.dumps(_logging_config(path)))
        environ[_VARIABLE] = str(file)
        try:
            yield FailureLog(path)
        finally:
            del environ[_VARIABLE]


def _logging_config(path: Path) -> dict[str, Any]:
    """vLLM's own configuration and the handler."""
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
    config["handlers"]["chiron"] = {"()": f"{__name__}.FirstErrorHandler", "path": str(path)}
    config["loggers"]["vllm"]["handlers"].append("chiron")
    return config
