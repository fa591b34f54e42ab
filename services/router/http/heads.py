"""What a request's head must not leave open: whoever stands in front must read it as this door does. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

from httptools import HttpParserCallbackError

_ONCE = frozenset({b"host", b"transfer-encoding"})
"""Headers that may not be there twice, whatever they say."""
_ALIKE, _OWN = frozenset({b"authorization"}), b"x-chiron-"
"""Headers that may not say two things; and how this door's own begin, of which the same holds."""
_VERSIONS = ("1.1", "1.0")
_METHOD = "it does not begin with a method of HTTP, in capitals, and a space"
_CAUSES: Mapping[str, str] = {
    "Invalid method encountered": _METHOD,
    "Expected space after method": _METHOD,
    "Expected HTTP/, RTSP/ or ICE/": "its first line is not METHOD TARGET HTTP/1.1",
    "Pause on PRI/Upgrade": "HTTP/2 is not spoken here: HTTP/1.1 and HTTP/1.0 are",
    "Invalid header token": "a header's name has a character that none may have",
    "Invalid header value char": "a header's value has a character that none may have",
}
"""Where the parser's own words would lead astray."""


def fault_of(version: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """What is wrong with the head of a request; None: nothing.

    Args:
        version: of HTTP.
        headers: their names in lower case.
    """
    if version not in _VERSIONS:
        return f"HTTP/{version} is not spoken here: HTTP/1.1 and HTTP/1.0 are"
    last = dict(headers)
    if len(last) < len(headers) and (name := _repeated(headers, last)) is not None:
        return f"the header {name.decode('latin-1')} is there more than once"
    if version == "1.1" and b"host" not in last:
        return "HTTP/1.1 asks for a host header"
    coding = last.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        return "a body may be chunked, and have no other transfer-encoding"
    return None


def _repeated(headers: Sequence[tuple[bytes, bytes]], last: dict[bytes, bytes]) -> bytes | None:
    """The first header that is there twice, and must not be."""
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE and name in seen:
            return name
        if value != last[name] and (name in _ALIKE or name.startswith(_OWN)):
            return name
        seen.add(name)
    return None


def cause_of(error: BaseException | None, target: bytes) -> str:
    """Why the parser could not read a request.

    Args:
        error: the parser's.
        target: of the request, as far as it has been read.
    """
    if isinstance(error, HttpParserCallbackError):
        return f"its target {reprlib.repr(target.decode('latin-1'))} is no path, and no URL that has one"
    said = str(error or "") or "it is damaged"
    return _CAUSES.get(said, said)
