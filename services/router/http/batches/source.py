"""What a batch of this door is made from, as the queue keeps it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDPOINTS = (CHAT, COMPLETIONS)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of requests to one endpoint."""

    input_file: str
    """Id of the file."""
    endpoint: str
    window: str
    """As the client gave it."""
    model: str = ""
    """As the first line names it; empty: that line names none."""
    key_id: str = ""
    """Of the key with which it was made: what that may not ask for is wrong in a line. Empty: none."""
    output_expires_s: float | None = None
    """How long the files of its results are kept; None: as long as the batch."""

    def text(self) -> str:
        """As `NewBatch.source`."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> Source:
        """The inverse."""
        return cls(**json.loads(text))
