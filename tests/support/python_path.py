"""The processes that a test starts run the code of the tree that the test lies in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OURS = (ROOT / "src", ROOT / "client" / "src", ROOT)


def python_path(*first: Path) -> str:
    """A PYTHONPATH: these folders, then this tree, then what the variable holds besides.

    The whole suite runs with it, so a process inherits it. A test that needs a folder of its own in front
    names it here; with that folder alone the process would find whatever else is installed.
    """
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys((*map(str, (*first, *_OURS)), *inherited)))
