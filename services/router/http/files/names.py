"""What a file may be called. Pure.

A name is a label, and never a path here. It becomes one where people save what they download, so that it is
refused when it could name another place than they think.
"""

from __future__ import annotations

from urllib.parse import quote

from services.router.http.errors import HttpError

LONGEST = 255
"""Bytes in UTF-8, as file systems have it."""
_SEPARATORS = "/\\"


def check_name(name: bytes) -> str:
    """The name. Raises HttpError (400)."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise _refused("it is not in UTF-8") from None
    if not text.strip():
        raise _refused("it is empty")
    if len(name) > LONGEST:
        raise _refused(f"it is longer than {LONGEST} bytes")
    if any(separator in text for separator in _SEPARATORS) or text.strip(" .") == "":
        raise _refused("it is a path: only its last part may be sent")
    if not text.isprintable():
        raise _refused("it has characters that cannot be seen")
    return text


def disposition(name: str) -> str:
    """The header with which a browser saves a file under its name, whatever characters it has."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _refused(why: str) -> HttpError:
    return HttpError(400, f"The file's name is refused: {why}.", param="file", code="invalid_filename")
