"""The folder that holds a run's logs and state."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from chiron.cluster.process import StartError

STATE_ROOT = Path(".chiron")
"""Where a run's folder is made when none is given."""
RUNS_KEPT = 10
"""Folders of this kind that stay, the newest one's included."""
_LOCK = ".cluster"
"""File in a run's folder that its cluster holds locked, with its process id."""
_MARK = ".may-be-removed"
"""File in a folder that was made here, which nobody has named since."""


def new_run_folder(root: Path = STATE_ROOT) -> Path:
    """Makes a folder named after the time, which later runs may remove. Raises StartError."""
    try:
        root.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("run-%Y%m%d-%H%M%S-"), dir=root))
        (folder / _MARK).touch()
    except OSError as error:
        raise _unusable(root, error) from error
    return folder


def use_run_folder(folder: Path) -> None:
    """Makes a folder that somebody has named, where it is missing; it is never removed by itself.

    Raises StartError when files cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            (folder / _MARK).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def hold_run_folder(folder: Path) -> ExitStack:
    """Keeps other clusters out of the folder until the result is closed, or this process is gone.

    Raises StartError when another one has it: two clusters in one folder would end each other's workers.
    """
    try:
        file = (folder / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise _unusable(folder, error) from error
    with ExitStack() as stack:
        stack.enter_context(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StartError(
                f"{folder}: another cluster runs here (pid {file.read().strip() or 'unknown'}); "
                "end it, or name another directory",
                bad_start=True,
            ) from None
        with suppress(OSError):  # On a full disk the lock counts all the same.
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        return stack.pop_all()


def remove_old_runs(root: Path = STATE_ROOT) -> None:
    """Removes all but the newest `RUNS_KEPT` folders of `new_run_folder` that no process has a file open in.

    Services and workers write their logs there for as long as they live. Blocks while it deletes.
    """
    made: dict[Path, int] = {}
    for mark in root.glob(f"run-*/{_MARK}"):
        with suppress(FileNotFoundError):  # Another run removes them too.
            made[mark.parent] = mark.stat().st_mtime_ns
    old = sorted(made, key=lambda folder: made[folder], reverse=True)[RUNS_KEPT:]
    if not old:
        return
    in_use = {parent for file in _open_files() for parent in file.parents}
    for folder in old:
        if folder.resolve() not in in_use:
            # What cannot be removed is in nobody's way: a run must not fail for it.
            shutil.rmtree(folder, ignore_errors=True)


def _open_files() -> Iterator[Path]:
    """What the processes that this user may look into have open."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # It has ended, or is another user's.
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    yield Path(os.readlink(descriptor))


def _unusable(folder: Path, error: OSError) -> StartError:
    return StartError(f"{folder}: cannot hold logs and state: {error.strerror}", bad_start=True)
