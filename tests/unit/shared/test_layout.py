"""The shape of the repository that packaging and imports rest on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("folder", ["src/chiron", "client/src/chiron", "services"])
def test_a_namespace_folder_has_no_init_file(folder: str) -> None:
    # One stray __init__.py hides the other distribution's half of `chiron`.
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_both_halves_of_the_namespace_import_together() -> None:
    code = "import chiron.client, chiron.v1, chiron.engine, chiron.policy, services.worker"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", timeout=60)


def test_the_lock_holds_every_runtime_dependency() -> None:
    declared = set()
    for project in ("pyproject.toml", "client/pyproject.toml"):
        with (ROOT / project).open("rb") as file:
            for dependency in tomllib.load(file)["project"]["dependencies"]:
                declared.add(dependency.split(">")[0].split("=")[0].strip())
    locked = {
        line.split("==")[0]
        for line in (ROOT / "requirements/dev.txt").read_text().splitlines()
        if "==" in line
    }
    assert declared - {"chiron-client"} <= locked


def test_lock_files_hold_hashes_and_no_download_addresses() -> None:
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text, lock.name
        assert "--hash=sha256:" in text, lock.name


@pytest.mark.parametrize(
    ("statement", "contract"),
    [
        ("chiron/policy/_probe.py|import time", "Policies do no I/O"),
        ("chiron/engine/_probe.py|import asyncio", "engine model does no I/O"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path: Path, statement: str, contract: str) -> None:
    path, _, code = statement.partition("|")
    copy = tmp_path / "src"
    for part in ("src/chiron", "client/src/chiron", "services"):
        target = copy / ("services" if part == "services" else "chiron")
        for file in (ROOT / part).rglob("*.py"):
            to = target / file.relative_to(ROOT / part)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    (copy / path).write_text(code + "\n")
    (copy / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    # -S keeps the editable install's paths out, so that the copy is what is checked.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(copy)!r}, {site!r}];"
         "from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        cwd=copy, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode != 0
    assert any(contract in line and "BROKEN" in line for line in run.stdout.splitlines()), run.stdout


def test_the_page_of_modules_is_fresh() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools/module_docs.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
