"""Folders of runs do not pile up, and nothing is removed that somebody may want."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiron.cluster import LocalCluster, StartError
from chiron.cluster.run_folder import (
    RUNS_KEPT,
    hold_run_folder,
    new_run_folder,
    remove_old_runs,
    use_run_folder,
)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three folders too many, made one second after the other, oldest first."""
    return made_in(tmp_path)


def made_in(root: Path) -> list[Path]:
    count, now = RUNS_KEPT + 3, time.time()
    folders = [new_run_folder(root) for _ in range(count)]
    for age_s, folder in zip(range(count, 0, -1), folders, strict=True):
        for file in folder.iterdir():
            os.utime(file, (now - age_s, now - age_s))
    return folders


def left(root: Path) -> set[Path]:
    return set(root.iterdir())


def test_the_newest_ten_are_kept(tmp_path: Path, runs: list[Path]) -> None:
    (runs[0] / "node-0").mkdir()
    (runs[0] / "node-0" / "worker.log").write_text("old\n")

    remove_old_runs(tmp_path)

    assert left(tmp_path) == set(runs[-10:])


def test_what_somebody_has_named_is_kept(tmp_path: Path, runs: list[Path]) -> None:
    named = tmp_path / "run-mine"
    use_run_folder(named)
    use_run_folder(runs[0])

    remove_old_runs(tmp_path)

    assert left(tmp_path) == {named, runs[0], *runs[-10:]}


@pytest.fixture
def survivor(runs: list[Path]) -> Iterator[Path]:
    """The oldest folder, with a process that writes its log there."""
    folder = runs[0] / "node-0" / "instances" / "toy-1"
    folder.mkdir(parents=True)
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=log, start_new_session=True
        )
    yield runs[0]
    process.communicate(b"\n")


def test_a_folder_whose_processes_live_is_kept(tmp_path: Path, runs: list[Path], survivor: Path) -> None:
    remove_old_runs(tmp_path)

    assert left(tmp_path) == {survivor, *runs[-10:]}


async def test_a_cluster_in_a_folder_of_its_own_makes_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = made_in(Path(".chiron"))

    async with LocalCluster(nodes=1, gpus=1) as cluster:
        assert left(Path(".chiron")) == {cluster.directory, *runs[-9:]}


async def test_a_cluster_in_a_named_folder_removes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = made_in(Path(".chiron"))

    async with LocalCluster(nodes=1, gpus=1, directory=Path(".chiron/run-mine")):
        assert left(Path(".chiron")) == {Path(".chiron/run-mine"), *runs}


def test_a_folder_is_one_cluster_s_at_a_time(tmp_path: Path) -> None:
    with (
        hold_run_folder(tmp_path),
        pytest.raises(
            StartError, match=rf"{tmp_path}: another cluster runs here \(pid {os.getpid()}\)"
        ) as told,
    ):
        hold_run_folder(tmp_path)
    assert told.value.bad_start
    with hold_run_folder(tmp_path):
        pass


def test_what_holds_a_folder_lets_go_when_it_is_killed(tmp_path: Path) -> None:
    source = (
        "import sys, time; from pathlib import Path; from chiron.cluster.run_folder import hold_run_folder\n"
        "held = hold_run_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StartError, match=rf"pid {holder.pid}"):
            hold_run_folder(tmp_path)
        holder.kill()
        holder.wait()
        hold_run_folder(tmp_path).close()
