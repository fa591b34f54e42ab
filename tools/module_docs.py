"""Writes docs/modules.md: every module with the first sentence of its docstring.

python tools/module_docs.py            # writes the page
python tools/module_docs.py --check    # exits with 1 when the page is stale
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from generated_page import write_or_check

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
PARTS = (
    ("The SDK: `client/src/chiron/`", ROOT / "client/src", "chiron/client"),
    ("Libraries: `src/chiron/`", ROOT / "src", "chiron"),
    ("Services: `services/`", ROOT, "services"),
)
_HEAD = """# Modules

One line for each, from its docstring (`make docs` writes this page). How they work together is in
[architecture.md](architecture.md).
"""


def render() -> str:
    """The page."""
    lines = [_HEAD]
    for title, base, below in PARTS:
        lines += [f"## {title}", "", "| module | |", "|---|---|"]
        for path in sorted((base / below).rglob("*.py")):
            if "_pb2" in path.name or path.name == "__main__.py":
                continue
            name = str(path.relative_to(base).with_suffix("")).replace("/", ".").removesuffix(".__init__")
            lines.append(f"| `{name}` | {_summary(path)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.])\s", paragraph)[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, render()))
