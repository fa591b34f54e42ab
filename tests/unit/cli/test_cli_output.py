"""Output that cannot be written ends the command without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "from chiron.cli.main import main; main()"
PRINTING = """
from chiron.cli import main, runner

@main.app.command()
def printing(flush: bool = False) -> None:
    async def work() -> int:
        print("a result", flush=flush)
        return 0

    runner.execute(work())

main.main()
"""
"""The command line with one more command, whose output needs no cluster."""


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=50)
    return process.returncode, said


def start(code: str, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


COMMANDS = pytest.mark.parametrize(
    ("code", "arguments"),
    [(PRINTING, ["printing"]), (PRINTING, ["printing", "--flush"]), (MAIN, ["version"])],
    ids=["written at the end", "written at once", "written by typer"],
)


@COMMANDS
def test_a_full_disk_is_one_line(code: str, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        status, said = ended(start(code, *arguments, stdout=full.fileno()))

    assert (status, said) == (1, "error: cannot write the output: No space left on device\n")


@COMMANDS
def test_a_reader_who_has_left_ends_the_command_quietly(code: str, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = start(code, *arguments, stdout=writing)
    finally:
        os.close(writing)

    assert ended(process) == (1, "")


def test_without_a_stdout_a_command_still_works() -> None:
    shell = 'exec "$0" -c "$1" printing >&-'
    result = subprocess.run(
        ["sh", "-c", shell, sys.executable, PRINTING], stderr=subprocess.PIPE, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")
