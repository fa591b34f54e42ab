"""What is wrong with a file of requests, line by line, as far as an answer has room for it. Pure."""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST = 100
"""Entries of a batch's `errors.data`, whatever its file is like."""
_LONGEST_TEXT = 400
_LONGEST_PARAM = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    code: str
    message: str
    line: int | None = None
    """From 1; None: it is none of one line."""
    param: str | None = None


class Faults:
    """Collects them: all are counted, and the first of the file are named."""

    def __init__(self) -> None:
        self._lines: list[Fault] = []
        """Those of lines, in the file's order; no more than may be named."""
        self._dropped = 0
        """Those beyond."""
        self._whole: list[Fault] = []
        """Those of the file, each of which is named."""
        self.cut = False
        """What follows was not looked at."""

    def __bool__(self) -> bool:
        return bool(self._lines or self._whole)

    @property
    def wrong_lines(self) -> int:
        """How many lines are wrong, as far as they were looked at."""
        return len(self._lines) + self._dropped

    def add(self, fault: Fault) -> None:
        """Takes that of one more line, in any order."""
        param = fault.param if fault.param is None else fault.param[:_LONGEST_PARAM]
        fault = Fault(fault.code, _shortened(fault.message), fault.line, param)
        insort(self._lines, fault, key=lambda one: one.line or 0)
        if len(self._lines) > MOST:
            self._lines.pop()
            self._dropped += 1

    def add_whole(self, fault: Fault) -> None:
        """Takes one of the file."""
        self._whole.append(fault)

    def text(self) -> str:
        """As `Batch.refusal`: no more than `MOST`, of which the last says how many lines are not named."""
        told = self._lines + self._whole
        if len(told) + self._dropped <= MOST:
            return refusal_of(told)
        named = self._lines[: MOST - len(self._whole) - 1]
        lines = f"{self.wrong_lines - len(named)} more lines are wrong, which are not named here."
        if self.cut:
            lines += " What follows was not looked at."
        return refusal_of([*named, *self._whole, Fault("too_many_errors", lines)])


def refusal_of(faults: Sequence[Fault]) -> str:
    """As `Batch.refusal`."""
    return json.dumps([asdict(fault) for fault in faults], ensure_ascii=False)


def errors_of(refusal: str) -> dict[str, Any]:
    """A batch's `errors` as OpenAI has them."""
    return {"object": "list", "data": json.loads(refusal)}


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
