"""How a batch file is read: what is between, around and beside its lines; and files of results."""

from __future__ import annotations

import gzip
import json
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
    assert items[2].reason == "custom_id 'a' is that of line 1"


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


@pytest.mark.parametrize("content", [b"notes\n", b"notes", b'{"batch_id": "other", "number": 1}\n', b"[]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(CliError):
        ResultsFile(path, "b")
    assert path.read_bytes() == content
