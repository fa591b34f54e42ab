"""A file as OpenAI has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chiron.batch.filing import FileKind, StoredFile

PURPOSES: Mapping[FileKind, str] = {
    FileKind.UPLOAD: "batch",
    FileKind.OUTPUT: "batch_output",
    FileKind.ERRORS: "batch_output",
}


def kinds_of(purpose: str | None) -> list[FileKind]:
    """The kinds of files that have a purpose; None: all. There are none for a purpose that is not known."""
    return [kind for kind, known in PURPOSES.items() if purpose in (None, known)]


def file_object(file: StoredFile) -> dict[str, Any]:
    """The file."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created),
        "expires_at": int(file.expires),
        "filename": file.name,
        "purpose": PURPOSES[file.kind],
        "status": "processed",
        "status_details": None,
    }
