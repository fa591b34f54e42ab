"""A SQLite queue whose process dies at any instant holds everything that it has acknowledged.

The images are what the process had handed to the operating system; what a disk has kept of that when power
fails is another matter (tests/system/test_batch_power_loss.py, and hardware that keeps its promises).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.batch_images import check_image
from tests.support.batch_writer import Acknowledged, read
from tests.support.wait import eventually

ROOT = Path(__file__).parents[3]
IMAGES = 15


def all_stopped(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def copy_files(folder: Path, image: Path) -> None:
    image.mkdir()
    for file in folder.glob("queue.db*"):
        shutil.copy(file, image / file.name)


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.batch_writer", str(tmp_path), "50", cwd=ROOT
    )
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def take_image(pid: int, folder: Path, image: Path) -> Acknowledged:
    """Stops every thread, copies every file, lets them go on; what was acknowledged before the stop."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(lambda: all_stopped(pid))
        known = read((folder / "said").read_bytes())
        copy_files(folder, image)
    finally:
        os.kill(pid, signal.SIGCONT)
    return known


async def test_every_image_of_a_process_at_work_holds_what_was_acknowledged(
    writer: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    rng = random.Random(7)
    said = tmp_path / "said"
    await eventually(lambda: said.exists() and said.stat().st_size > 0)
    known = Acknowledged()
    for number in range(IMAGES):
        # Not at any particular instant of the writer's: neither after a commit nor between two.
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        image = tmp_path / f"image-{number}"
        known = await take_image(writer.pid, tmp_path, image)
        await check_image(image, known)
        shutil.rmtree(image)
    assert len(known.appended) > 100
    assert len(known.finished) > 3


async def test_a_process_that_is_killed_leaves_what_was_acknowledged(
    writer: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    await eventually(lambda: said.exists() and len(read(said.read_bytes()).finished) > 10)
    writer.kill()
    await writer.wait()
    await check_image(tmp_path, read(said.read_bytes()))
