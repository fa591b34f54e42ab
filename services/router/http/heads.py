"""What a request's head must not leave open: whoever stands in front must read it as this door does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_ONCE = frozenset({b"host", b"transfer-encoding"})
"""Headers that may not be there twice, whatever they say."""
_ALIKE, _OWN = frozenset({b"authorization"}), b"x-chiron-"
"""Headers that may not say two things; and how this door's own begin, of which the same holds."""
_VERSIONS = ("1.1", "1.0")


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
