"""The folder that holds a run's logs and state."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from chiron.cluster.process import StartError

STATE_ROOT = Path(".chiron")
"""Where a run's folder is made when none is given."""


def new_run_folder(root: Path = STATE_ROOT) -> Path:
    """Makes a folder named after the time. Raises StartError."""
    try:
        root.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("run-%Y%m%d-%H%M%S-"), dir=root))
    except OSError as error:
        raise _unusable(root, error) from error


def check_writable(folder: Path) -> None:
    """Makes the folder where it is missing. Raises StartError when files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> StartError:
    return StartError(f"{folder}: cannot hold logs and state: {error.strerror}", bad_start=True)
