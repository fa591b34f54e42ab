"""`chiron sim paper` as a user meets it: its plan, its end, and how it goes on after one that came early."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chiron.cli.sim_paper import PaperOptions, run_paper
from chiron.config import ConfigError
from chiron.sim.paper import experiments
from tests.support import paper_experiments as tiny
from tests.support.chiron_command import simulate
from tests.support.wait import eventually

CODE = """
import chiron.sim.paper.experiments as listed
from tests.support import paper_experiments as tiny
listed.EXPERIMENTS = (getattr(tiny, {name!r}), tiny.SKIPPED)
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from chiron.cli.main import main
main()
"""


def arguments(name: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", CODE.format(name=name), "sim", "paper", "--out", str(out), "--quick", *more]


def paper(name: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(name, out, *more), capture_output=True, text=True, check=False)


@contextmanager
def under_way(out: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has more to do than it will get to."""
    command = arguments("MANY", out, "--jobs", "1", *more)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


def finished(out: Path) -> list[Path]:
    return sorted((out / "cache").glob("*.json"))


def test_it_plans_runs_and_ends_with_one_line_of_figures(tmp_path: Path) -> None:
    done = paper("TINY", tmp_path / "new" / "out", "--jobs", "1")

    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["runs"], last["cached"], last["failed"], last["skipped"]) == (5, 0, 0, ["skipped"])
    assert Path(last["results"]).is_file()
    page = Path(last["report"]).read_text()
    assert "Not run: nothing was given." in page
    assert "20.0,llumnix,102" in page
    assert "requests per CPU-second from a short run" in done.stderr
    assert "skipped: nothing was given" in done.stderr


def options(out: Path, **given: Any) -> PaperOptions:
    plain: dict[str, Any] = {field.name: None for field in dataclasses.fields(PaperOptions)}
    return PaperOptions(
        **{**plain, "quick": True, "jobs": 1, "goals_full": False, "dry_run": False, **given, "out": out}
    )


@pytest.fixture
def only_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "EXPERIMENTS", (tiny.TINY, tiny.SKIPPED))


@pytest.mark.usefixtures("only_tiny")
def test_a_plan_alone_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_paper(options(tmp_path, dry_run=True))

    told = capsys.readouterr()
    assert told.out == ""
    assert "left out of" not in told.err
    assert "about 1 later" in told.err
    assert finished(tmp_path) == []


@pytest.mark.usefixtures("only_tiny")
def test_one_case_is_run_again_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_paper(options(tmp_path, only="tiny", case="20.0,llumnix,102"))

    found = json.loads(capsys.readouterr().out)
    assert (found["key"], found["seed"], found["policy"]) == ("20.0,llumnix,102", 102, "llumnix")
    assert found["figures"]["gpu_hours"] > 0
    assert finished(tmp_path) == []


@pytest.mark.usefixtures("only_tiny")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"only": "bogus"}, "--only: unknown experiment 'bogus'; known are skipped, tiny"),
        ({"case": "x"}, "--case: needs --only with the one experiment that the case is of"),
        ({"traces": Path("/nowhere")}, "--traces: /nowhere is no folder"),
        ({"only": "skipped", "case": "x"}, "--case: experiment skipped has no case 'x'; it has none"),
    ],
)
def test_a_mistake_is_named(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        run_paper(options(tmp_path / "out", **given))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_after_a_kill_no_finished_run_is_lost(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    with under_way(tmp_path) as running:
        await eventually(lambda: len(finished(tmp_path)) >= 3)
        running.kill()
        running.wait()
    kept = finished(tmp_path)

    with under_way(tmp_path, "--markdown", str(tmp_path / "report.md")) as running:
        await eventually(lambda: len(finished(tmp_path)) > len(kept))
        running.send_signal(number)
        out, told = running.communicate(timeout=30)

    assert running.returncode == status
    assert out == b""
    assert b"the same command goes on from there" in told
    assert b"Traceback" not in told
    # The report on what there is says what there is not.
    for report in ("report.md", "report.html"):
        assert re.search(r"without\W.*tiny: \d+ of 30 runs", (tmp_path / report).read_text(), re.DOTALL)
    plan = paper("MANY", tmp_path, "--dry-run").stderr
    row = next(line for line in plan.splitlines() if "tiny" in line)
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[2] == "30"
    assert int(cells[3]) == len(finished(tmp_path)) > len(kept) >= 3


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = simulate("paper", "--out", tmp_path / "file")

    assert done.status == 2
    assert done.stderr == f"error: --out: cannot write {tmp_path / 'file'}: Not a directory\n"
