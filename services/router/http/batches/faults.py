"""What is wrong with a file of requests, line by line, as far as an answer has room for it. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST = 100
"""Faults that are named."""
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
    """Collects them."""

    def __init__(self) -> None:
        self.found: list[Fault] = []
        self.more = 0
        """Faults beyond those."""
        self.cut = False
        """What follows was not looked at."""

    def __bool__(self) -> bool:
        return bool(self.found)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.found) + self.more

    def add(self, fault: Fault) -> None:
        """Takes one more."""
        if len(self.found) >= MOST:
            self.more += 1
            return
        param = fault.param if fault.param is None else fault.param[:_LONGEST_PARAM]
        self.found.append(Fault(fault.code, _shortened(fault.message), fault.line, param))

    def text(self) -> str:
        """As `Batch.refusal`."""
        told = list(self.found)
        if self.more:
            lines = f"{self.more} more lines are wrong, which are not named here."
            if self.cut:
                lines += " What follows was not looked at."
            told.append(Fault("too_many_errors", lines))
        return refusal_of(told)


def refusal_of(faults: Sequence[Fault]) -> str:
    """As `Batch.refusal`."""
    return json.dumps([asdict(fault) for fault in faults], ensure_ascii=False)


def errors_of(refusal: str) -> dict[str, Any]:
    """A batch's `errors` as OpenAI has them."""
    return {"object": "list", "data": json.loads(refusal)}


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
