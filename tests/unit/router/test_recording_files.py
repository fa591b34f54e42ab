"""The files of a recording: bounds, rotation, disks that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from services.router.recording.files import RecordingFiles

HEADER = "header, some characters long\n"


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def test_a_file_ends_at_its_size_and_the_oldest_go(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "new" / "folder", "r/1", 60, 2)
    for number in range(5):
        if files.full():
            files.begin(HEADER)
        files.write([f"line {number} {'x' * 30}\n"])
    files.close()
    left = files_of(tmp_path / "new" / "folder")
    assert [path.read_text().splitlines()[1][:6] for path in left] == ["line 3", "line 4"]
    assert all(path.name.startswith("requests-r_1-") for path in left)
    assert {path.stat().st_mode & 0o777 for path in left} == {0o600}


def test_a_restart_begins_another_file_and_leaves_others_alone(tmp_path: Path) -> None:
    for owner in ("a", "a", "b"):
        files = RecordingFiles(tmp_path, owner, 1000, 1)
        assert files.full()
        files.begin(HEADER)
        files.close()
    assert [path.name[:11] for path in files_of(tmp_path)] == ["requests-a-", "requests-b-"]


def test_a_disk_that_takes_a_part_leaves_whole_lines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RecordingFiles(tmp_path, "a", 1000, 9)
    files.begin(HEADER)
    files.write(["first\n"])
    real = os.write
    room = [4]

    def write(out: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, room[0] = data[: room[0]], 0
        return real(out, taken)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            files.write(["second\n", "third\n"])
        assert files.full()
        with pytest.raises(OSError, match="No space left"):
            files.begin(HEADER)
    [path] = files_of(tmp_path)
    assert path.read_text().splitlines()[1:] == ["first"]
    files.begin(HEADER)
    files.write(["fourth\n"])
    assert len(files_of(tmp_path)) == 2
