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
        self._disposition = b""
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
            self._parser.write(data)
        except FormParserError as error:
            raise broken(str(error)) from error
        events, self._events = self._events, []
        return events

    def _on_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise broken(f"it has more than {MOST_PARTS} parts")
        self._disposition = b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise broken("a part has no name")
        field = name.decode("utf-8", "replace")
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
