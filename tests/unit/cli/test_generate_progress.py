"""What `chiron generate` shows on stderr while its request waits."""

from __future__ import annotations

import io

import pytest

from chiron.cli.generate import Waiting
from chiron.client import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(text: str, instance_id: str = "") -> Progress:
    return Progress(
        text=text,
        position=1,
        waiting=1,
        waited_ms=0.0,
        instance_id=instance_id,
        loading_ms=0.0,
        ready_in_ms=None,
    )


def test_without_a_terminal_each_instance_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = Waiting()
    for text, instance_id in (("none runs", ""), ("still none", ""), ("1 s", "m-1"), ("2 s", "m-1")):
        waiting.show(progress(text, instance_id))
    waiting.over()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "none runs\n1 s\n"


def test_on_a_terminal_one_line_is_written_over_and_wiped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    waiting = Waiting()
    waiting.show(progress("1 s", "m-1"))
    waiting.show(progress("2 s", "m-1"))
    waiting.over()
    waiting.over()
    assert screen.getvalue() == "\r\x1b[K1 s\r\x1b[K2 s\r\x1b[K"


def test_who_never_waited_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Waiting().over()
    assert capsys.readouterr().err == ""
