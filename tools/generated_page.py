"""Pages that a tool writes: written anew, or checked against the tree."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: Path, text: str) -> int:
    """Writes the page; with --check among the arguments compares it instead. Returns the exit status."""
    if "--check" not in sys.argv[1:]:
        page.write_text(text, encoding="utf-8")
        return 0
    if page.read_text(encoding="utf-8") == text:
        return 0
    print(f"error: {page.parent.name}/{page.name} is stale; run 'make docs' and commit it", file=sys.stderr)
    return 1
