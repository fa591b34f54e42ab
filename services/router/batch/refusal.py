"""What is wrong with a refused batch, as far as an answer has room for it. Pure."""

from __future__ import annotations

from chiron.rpc.errors import ChironError, Reason
from services.router.batch.items import Wrong

MOST_ITEMS = 100
"""Items that are named."""
_MOST_BYTES = 4_800
"""Of all violations: gRPC's callers take 8 KiB of metadata, where they travel in base64."""
_LONGEST_TEXT = 200
_TOLD = 3
"""Items that the message names by itself."""


class Refusal:
    """Collects the items that make a batch refused."""

    def __init__(self) -> None:
        self.items = 0
        """Wrong items so far."""
        self._violations: list[tuple[str, str]] = []
        self._told: list[str] = []
        self._bytes = 0
        self.full = False
        """There is no room for one more: what follows need not be looked at."""

    def __bool__(self) -> bool:
        return self.items > 0

    def add(self, wrong: Wrong) -> None:
        """Takes one more item."""
        self.items += 1
        for field, what in wrong.violations:
            path, text = f"items[{wrong.index}].{field}", _shortened(what)
            size = len(path.encode()) + len(text.encode()) + 8
            if self._bytes + size > _MOST_BYTES:
                self.full = True
                break
            self._bytes += size
            self._violations.append((path, text))
            if len(self._told) < _TOLD:
                self._told.append(f"{path}: {text}")
        self.full = self.full or self.items >= MOST_ITEMS

    def error(self) -> ChironError:
        """The refusal."""
        more = self.items - len({field.partition(".")[0] for field, _ in self._violations[: len(self._told)]})
        text = "; ".join(self._told)
        if more > 0:
            text += f"; and {more} more items" if more > 1 else "; and 1 more item"
        if self.full:
            text += "; what follows was not looked at"
        return ChironError(
            Reason.INVALID_ARGUMENT,
            f"nothing of the batch is kept: {text}",
            violations=self._violations,
            metadata={"invalid_items": str(self.items), "all_looked_at": str(not self.full).lower()},
        )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
