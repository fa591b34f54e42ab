"""Batches under faults: each item has one right result, on either store."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

_ERRORS = ("lost", "duplicated", "failed", "wrong", "miscounted")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("store", [("sqlite", 1), ("postgres", 2)], ids=["sqlite", "postgres"])
async def test_each_item_has_one_result_whatever_dies(store: tuple[str, int], tmp_path: Path) -> None:
    name, routers = store
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.batch_soak", f"--store={name}", f"--routers={routers}"),
        *("--items=1500", "--batches=3", "--every=1.5", "--seed=3", f"--directory={tmp_path}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
    )
    try:
        out, err = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
    diary = (tmp_path / "faults.log").read_text()
    assert out.count(b"\n") == 1, err.decode()
    report = json.loads(out)
    assert {column: report[column] for column in _ERRORS} == dict.fromkeys(_ERRORS, 0), diary
    assert (report["results"], report["succeeded"]) == (1500, 1500)
    assert report["faults"] >= 1
    assert run.returncode == 0


async def test_a_file_is_one_routers(tmp_path: Path) -> None:
    run = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.batch_soak",
            "--store=sqlite",
            "--routers=2",
            f"--directory={tmp_path}",
        ),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await run.communicate()
    assert (run.returncode, err.decode().count("\n")) == (2, 1)
