"""How a batch file is read: what is between, around and beside its lines; and files of results."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chiron.cli.batch.results import ResultsFile, line_of_result
from chiron.cli.batch.source import MOST_LINE_BYTES, BatchFile
from chiron.cli.runner import CliError
from chiron.client import ItemFailure, ItemResult, ItemState, MalformedItem

GOOD = b'{"model": "toy", "prompt": "x"}'


def read(path: Path, content: bytes) -> tuple[BatchFile, list[Any]]:
    path.write_bytes(content)
    file = BatchFile(str(path))
    try:
        return file, list(file)
    finally:
        file.close()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path, end: bytes, pack: Any) -> None:
    content = b"\xef\xbb\xbf" + end.join([GOOD, b"", b"  \t", GOOD, b"", b"{", GOOD])
    file, items = read(tmp_path / "a", pack(content))
    assert [file.line_of(index) for index in range(file.items)] == [1, 4, 6, 7]
    assert items[0] == items[1] == items[3] == {"model": "toy", "prompt": "x"}
    assert isinstance(items[2], MalformedItem)


def test_an_empty_file_has_no_items(tmp_path: Path) -> None:
    assert read(tmp_path / "a", b"")[1] == []
    assert read(tmp_path / "b", b"\n\n")[1] == []


def test_a_line_that_is_too_long_costs_no_memory_and_no_other_line(tmp_path: Path) -> None:
    huge = b'{"prompt": "' + b"x" * (3 * MOST_LINE_BYTES) + b'"}'
    (tmp_path / "a").write_bytes(b"\n".join([GOOD, huge, GOOD]))
    tracemalloc.start()
    try:
        file = BatchFile(str(tmp_path / "a"))
        items = list(file)
        file.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [type(item) for item in items] == [dict, MalformedItem, dict]
    assert items[1].reason == "longer than 16 MiB"
    assert file.line_of(2) == 3
    assert peak < 2.5 * MOST_LINE_BYTES


def test_an_id_that_occurs_twice_names_both_lines(tmp_path: Path) -> None:
    line = b'{"custom_id": "a", "prompt": "x"}'
    _, items = read(tmp_path / "a", b"\n".join([line, GOOD, line]))
    assert items[2] == MalformedItem("custom_id 'a' is that of line 1", "a")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="none: No such file"):
        BatchFile(str(tmp_path / "none"))
    with pytest.raises(CliError, match="Is a directory"):
        BatchFile(str(tmp_path))
    whole = gzip.compress(GOOD + b"\n" + bytes(range(256)) * 4000)
    with pytest.raises(CliError, match="cannot be read after item"):
        read(tmp_path / "cut", whole[: len(whole) // 2])


def result(number: int) -> ItemResult:
    return ItemResult(
        number=number,
        index=number - 1,
        custom_id=f"é{number}",
        state=ItemState.FAILED,
        output=None,
        error=ItemFailure("NO", "x" * 100),
        recorded=datetime(2026, 1, 1, tzinfo=UTC),
        late=False,
        attempts=1,
    )


def test_results_go_on_after_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with ResultsFile(path, "b") as file:
        assert file.last == 0
        for number in range(1, 2001):
            file.write(result(number))
    whole = path.read_bytes()
    for cut in (0, 1, 40, 200):
        path.write_bytes(whole[: len(whole) - cut])
        with ResultsFile(path, "b") as file:
            assert file.last == (2000 if cut == 0 else 1999)
            for number in range(file.last + 1, 2001):
                file.write(result(number))
        assert path.read_bytes() == whole


def test_a_single_torn_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(line_of_result("b", result(1))[:-20])
    with ResultsFile(path, "b") as file:
        assert file.last == 0
        file.write(result(1))
    assert json.loads(path.read_bytes())["number"] == 1


@pytest.mark.parametrize(
    "content",
    [
        b"notes\n",
        b"notes",
        b'{"batch_id": "other", "number": 1}\n',
        b'{"batch_id": "other", "number": 1}',
        b"[]\n",
        b'{"custom_id": "q", "prompt": "the only line, without an end"}',
        b"notes\nwhose last line has no end",
        line_of_result("b", result(1)) + b"and notes",
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(CliError):
        ResultsFile(path, "b")
    assert path.read_bytes() == content


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    with ResultsFile(Path("/dev/null"), "b") as file:
        file.write(result(1))
        assert file.last == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with ResultsFile(pipe, "b") as file:
            file.write(result(1))
        assert os.read(reader, 1 << 16) == line_of_result("b", result(1))
    finally:
        os.close(reader)


def test_a_full_disk_is_one_line() -> None:
    file = ResultsFile(Path("/dev/full"), "b")
    file.write(result(1))
    with pytest.raises(CliError, match="/dev/full: No space left"):
        file.flush()
    with pytest.raises(CliError, match="/dev/full: No space left"):
        file.__exit__(None, None, None)


def test_a_stdin_that_stays_silent_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command opens it on its event loop, where Ctrl-C must still be heard."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", 0) as typed:
        monkeypatch.setattr(sys, "stdin", stdin)
        made: list[BatchFile] = []
        opening = threading.Thread(target=lambda: made.append(BatchFile("-")), daemon=True)
        opening.start()
        opening.join(10)
        opened = list(made)
        if not opened:
            typed.close()
            opening.join()
        assert opened, "it waits for what is typed"
        items = iter(opened[0])
        typed.write(GOOD + b"\n")
        assert next(items) == {"model": "toy", "prompt": "x"}
        opened[0].close()


def test_a_command_without_stdin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CliError, match="stdin: is closed"):
        BatchFile("-")
