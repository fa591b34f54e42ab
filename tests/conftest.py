"""Settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.python_path import python_path

os.environ["PYTHONPATH"] = python_path()
# A thousand processes are started here: each module is compiled by the first one, not by every one.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Children are always replaced by another program; gRPC's fork handlers, which would let them go on with gRPC,
# can crash them before that when other threads are busy in gRPC. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from hypothesis import HealthCheck, settings

from tests.support.hang_guard import (
    pytest_configure,
    pytest_enter_pdb,
    pytest_runtest_logfinish,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)

__all__ = [
    "pytest_configure",
    "pytest_enter_pdb",
    "pytest_runtest_logfinish",
    "pytest_timeout_set_timer",
    "pytest_unconfigure",
]

# In CI the examples follow from the tests alone, so that a red run is about the change; elsewhere they are
# new every time and go on searching.
# How long an example takes, and how soon the next one is drawn, says something of the machine alone.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("search"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

_LONGEST_FIRST = ("e2e", "integration", "conformance", "sim", "property", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several workers, which take file by file: none is left at the end with a long one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    kind = item.path.relative_to(Path(__file__).parent).parts[0]
    return _LONGEST_FIRST.index(kind) if kind in _LONGEST_FIRST else -1
