"""Reads a multipart form piece by piece: fields are small and kept, a file is passed on as it comes. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.router.http.errors import HttpError

# What a client does wrong is told to it, and fills no log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)
MOST_PARTS = 8
_LONGEST_FIELD = 1024
_LONGEST_PREAMBLE = 4096
_AS_THEY_ARE = (b"", b"7bit", b"8bit", b"binary")
"""What a part's content-transfer-encoding may be: its bytes are kept as they come."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that is no file."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FileBegins:
    """A part that is a file."""

    field: str
    filename: bytes


@dataclass(frozen=True, slots=True)
class FileData:
    """A part of the file that began last."""

    data: bytes


Event = Field | FileBegins | FileData


class Form:
    """One form; memory does not grow with its size."""

    def __init__(self, content_type: str) -> None:
        """Raises HttpError (400, 415): it is no multipart form, or none that can be read."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            told = kind.decode("latin-1") or "nothing"
            text = f"The body must be multipart/form-data, not {told}."
            raise HttpError(415, text, code="unsupported_media_type")
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise broken("it has no boundary that can be one")
        self.complete = False
        """Whether its last boundary has come."""
        self._events: list[Event] = []
        self._header, self._value = b"", b""
        self._disposition = self._transfer = b""
        self._delimiter = b"\r\n--" + boundary
        self._preamble: bytearray | None = bytearray(b"\r\n")
        """The end of what came before the first boundary, and of a line before it; None: that has come."""
        self._skipped = 0
        self._field: str | None = None
        """Name of the field that is being read; None: a file is, or nothing."""
        self._held = bytearray()
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> list[Event]:
        """What the next bytes of the body bring. Raises HttpError (400)."""
        try:
            self._parser.write(data if self._preamble is None else self._after_preamble(self._preamble, data))
        except FormParserError as error:
            raise broken(str(error)) from error
        events, self._events = self._events, []
        return events

    def check_complete(self) -> None:
        """Raises HttpError (400): the body is over, and the form is not."""
        if self._preamble is not None:
            raise broken(f"its boundary {self._boundary} is not in it")
        if not self.complete:
            raise broken("it ends before its last boundary")

    @property
    def _boundary(self) -> str:
        return repr(self._delimiter[4:].decode("latin-1"))

    def _after_preamble(self, held: bytearray, data: bytes) -> bytes:
        """What follows the preamble, which is for readers that know no forms (RFC 2046, section 5.1.1)."""
        held += data
        start = held.find(self._delimiter)
        if start < 0:
            past = max(0, len(held) - len(self._delimiter) + 1)
            self._skipped += past
            del held[:past]
            if self._skipped > _LONGEST_PREAMBLE:
                raise broken(
                    f"its boundary {self._boundary} is not among its first {_LONGEST_PREAMBLE} bytes"
                )
            return b""
        self._preamble = None
        return bytes(held[start + 2 :])

    def _on_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise broken(f"it has more than {MOST_PARTS} parts")
        self._disposition = self._transfer = b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        name = self._header.lower()
        if name == b"content-disposition":
            self._disposition = self._value
        elif name == b"content-transfer-encoding":
            self._transfer = self._value.strip()
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise broken("a part has no name")
        field = name.decode("utf-8", "replace")
        if self._transfer.lower() not in _AS_THEY_ARE:
            coding = self._transfer[:40].decode("latin-1")
            raise broken(
                f"its part {field[:40]!r} has the content-transfer-encoding {coding!r}, and parts are taken "
                "as they are (binary)"
            )
        filename = options.get(b"filename")
        if filename is None:
            self._field, self._held = field, bytearray()
        else:
            self._field = None
            self._events.append(FileBegins(field, filename))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._events.append(FileData(data[start:end]))
            return
        self._held += data[start:end]
        if len(self._held) > _LONGEST_FIELD:
            raise broken(f"the field {self._field[:40]!r} is longer than {_LONGEST_FIELD} bytes")

    def _on_part_end(self) -> None:
        if self._field is not None:
            self._events.append(Field(self._field, self._held.decode("utf-8", "replace")))
            self._field = None

    def _on_end(self) -> None:
        self.complete = True


def broken(why: str) -> HttpError:
    """The refusal of a form that cannot be read."""
    return HttpError(400, f"The form cannot be read: {why}.", code="invalid_form")
