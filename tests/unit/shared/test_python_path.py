"""What a test starts runs the code of its own tree, whatever else is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import chiron.client
import chiron.cluster
import services.worker
from tests.support.python_path import ROOT, python_path

MODULES = ("chiron.cluster", "chiron.client", "services.worker")


def test_the_tests_themselves_do() -> None:
    for module in (chiron.cluster, chiron.client, services.worker):
        assert module.__file__ is not None
        assert Path(module.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("own", [False, True], ids=["inherited", "with a folder of its own"])
def test_a_process_does(tmp_path: Path, own: bool) -> None:
    (tmp_path / "mine.py").touch()
    names = (*MODULES, "mine") if own else MODULES
    shows = f"import importlib as i\nfor name in {names}: print(i.import_module(name).__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", shows],
        cwd="/",
        env={"PYTHONPATH": python_path(tmp_path)} if own else None,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [Path(line) for line in ran.stdout.splitlines()]
    assert len(found) == len(names), ran.stderr
    assert all(file.is_relative_to(ROOT) for file in found[: len(MODULES)])
    assert [file.parent for file in found[len(MODULES) :]] == [tmp_path] * own
