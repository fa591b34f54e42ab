"""Configuration of the recording: the `[router.recording]` table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """What is kept of requests, for `chiron sim replay`."""

    path: Path | None = None
    """Folder of the files; empty: nothing is recorded. Lengths, times and ends of requests go there, no
    text, no token and no name of a tenant."""
    file_bytes: int = 64 * 1024 * 1024
    """Size at which a file ends and the next one begins."""
    files: int = 16
    """Files of this router that are kept, the newest; those of its earlier runs count."""
    pending: int = 100_000
    """Most requests under way that are followed; those beyond are left out, which is counted and told."""
    buffer_lines: int = 20_000
    """Most lines that wait for the disk; those beyond are left out, which is counted and told."""

    def __post_init__(self) -> None:
        """Rejects what cannot work, naming the key."""
        for key, least in (("file_bytes", 4096), ("files", 1), ("pending", 1), ("buffer_lines", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: must be >= {least}, not {getattr(self, key)}")
