"""Who calls the HTTP door, in the form in which every door asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ASKED = {
    b"authorization": "authorization",
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
    b"baggage": "baggage",
}
"""Headers that count as metadata of the call."""
_NO_KEY = (b"authorization", b"Bearer none")
"""OpenAI's clients always send a key: this one says that there is none, and that a certificate may tell."""


@dataclass(frozen=True, slots=True)
class HttpCaller:
    """A `CallContext` made of one HTTP request."""

    metadata: tuple[tuple[str, str], ...]
    subjects: tuple[bytes, ...]
    """URI names in the client's certificate, which the handshake has verified."""
    host: str
    port: int

    @classmethod
    def of(
        cls,
        headers: Sequence[tuple[bytes, bytes]],
        address: tuple[str, int] | None,
        subjects: tuple[bytes, ...],
    ) -> HttpCaller:
        """Reads a request's headers, whose names are in lower case."""
        asked = [
            (_ASKED[name], value.decode("latin-1"))
            for name, value in headers
            if name in _ASKED and (name, value) != _NO_KEY
        ]
        host, port = address or ("", 0)
        return cls(tuple(asked), subjects, host, port)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers that say who calls and in which trace."""
        return self.metadata

    def auth_context(self) -> Mapping[str, tuple[bytes, ...]]:
        """What the handshake proved."""
        return {"peer_uri": self.subjects}

    def peer(self) -> str:
        """The client's address, as gRPC writes it."""
        if ":" in self.host:
            return f"ipv6:[{self.host}]:{self.port}"
        return f"ipv4:{self.host}:{self.port}"


def certificate_names(certificate: Mapping[str, object] | None) -> tuple[bytes, ...]:
    """The URI names in a client's certificate, as `ssl` shows it; none without one."""
    names = (certificate or {}).get("subjectAltName", ())
    assert isinstance(names, tuple)
    return tuple(value.encode() for kind, value in names if kind == "URI")
