"""What a SQLite queue acknowledges was synced before: a power cut at any instant takes nothing of it.

The process runs under strace; from its writes and syncs follows what a disk that keeps its promises must hold
at each instant. Disks that do not keep them need a plug that is pulled.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.batch_images import check_image
from tests.support.batch_writer import Acknowledged, read
from tests.support.disk_trace import Call, Disk, command, read_calls
from tests.support.wait import eventually

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
CUTS = 30
ACKNOWLEDGED = 400


@pytest.fixture
async def calls(tmp_path: Path) -> list[Call]:
    """What a queue at work has called, its log carried over every few commits."""
    if shutil.which("strace") is None:
        pytest.fail("install strace")
    trace = tmp_path / "trace"
    folder = tmp_path / "queue"
    folder.mkdir()
    program = [sys.executable, "-m", "tests.support.batch_writer", str(folder), "40"]
    process = await asyncio.create_subprocess_exec(
        *command(trace, *program), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    said = folder / "said"
    try:
        await eventually(
            lambda: said.exists() and said.read_bytes().count(b"\n") > ACKNOWLEDGED, within_s=40.0
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return list(read_calls(trace))


async def test_a_power_cut_takes_nothing_that_was_acknowledged(calls: list[Call], tmp_path: Path) -> None:
    rng = random.Random(3)
    folder = tmp_path / "queue"
    disk = Disk(str(folder / "queue.db"))
    said = b""
    spoken = [place for place, call in enumerate(calls) if call.path == str(folder / "said")]
    cuts = set(rng.sample(spoken, CUTS)) | set(rng.sample(range(spoken[0], len(calls)), CUTS))
    lost = torn = 0
    for place, call in enumerate(calls):
        if call.path == str(folder / "said"):
            said += call.data
            assert disk.folder_synced, "the files' names may be lost"
        disk.take(call)
        if place not in cuts:
            continue
        known: Acknowledged = read(said)
        for leaves in (None, rng):
            image = tmp_path / "image"
            image.mkdir()
            disk.save(image, leaves)
            await check_image(image, known)
            shutil.rmtree(image)
            lost += leaves is None
            torn += leaves is not None
    assert (lost, torn) == (len(cuts), len(cuts))
    assert any(call.path == str(folder / "queue.db") and call.name == "pwrite64" for call in calls)
