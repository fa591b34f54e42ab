"""From a line of a file to an item of a batch, or to what is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from chiron.auth.callers import Caller
from chiron.batch.records import NewItem
from chiron.rpc.reading import MOST_FIELDS
from chiron.v1 import batch_pb2, inference_pb2, types_pb2
from services.router.batch.items import ItemChecker, Wrong
from services.router.http import names
from services.router.http.batches.faults import Fault
from services.router.http.batches.lines import NumberedLine
from services.router.http.batches.source import CHAT, COMPLETIONS, Source
from services.router.http.bodies import too_many_values
from services.router.http.chat import request as chat
from services.router.http.completions import request as completions
from services.router.http.errors import ANSWERS, HttpError, renamed
from services.router.http.fields import TextFields
from services.router.http.models import split
from services.router.http.promises import promised

_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_ONE_BY_ONE = {
    "stream": "an answer in a file is not streamed",
    "return_token_ids": "files of results have no token ids",
    "return_tokens_as_token_ids": "files of results have no token ids",
}
"""What a line may not ask for, and why."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    read: Callable[[Mapping[str, Any]], Any]
    to_generate: Callable[[Any, Any], inference_pb2.GenerateRequest]
    names: Mapping[str, str]


_ENDPOINTS = {
    CHAT: _Endpoint(chat.read_chat, chat.to_generate, names.CHAT),
    COMPLETIONS: _Endpoint(completions.read_completion, completions.to_generate, names.COMPLETION),
}


class FaultError(Exception):
    """A line is no request."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class RequestReader:
    """Reads the lines of one file, in their order."""

    def __init__(self, source: Source, checker: ItemChecker, owner: Caller | None) -> None:
        """A reader.

        Args:
            source: says what the lines are for.
            checker: knows what the owner may ask for.
            owner: whose key may say what lines leave open; None: tenancy is off.
        """
        self._source = source
        self._defaults = inference_pb2.GenerateRequest(request_class=types_pb2.REQUEST_CLASS_BATCH)
        if owner is not None:
            owner.fill(self._defaults)
        self._endpoint = _ENDPOINTS[source.endpoint]
        self._checker = checker

    def read(self, line: NumberedLine, index: int) -> NewItem | Fault:
        """The item of this place, or what is wrong with the line."""
        try:
            return self._item(line, index)
        except FaultError as error:
            return Fault(error.code, str(error), line.number, error.param)
        except HttpError as error:
            param = f"body.{error.param}" if error.param else "body"
            return Fault(error.code or "invalid_value", error.message, line.number, param)

    def _item(self, line: NumberedLine, index: int) -> NewItem | Fault:
        found = read_object(line)
        custom_id = self._custom_id(found)
        body = found.get("body")
        if not isinstance(body, dict):
            raise _missing("body") if body is None else _invalid("body", "must be an object")
        request: TextFields = self._endpoint.read(body)
        for name, why in _ONE_BY_ONE.items():
            if getattr(request, name):
                raise FaultError("unsupported_parameter", f"{name}: {why}.", f"body.{name}")
        if request.copies > 1:
            text = "n: choices at temperature 0 are all the same; ask for one."
            raise FaultError("unsupported_parameter", text, "body.n")
        if self._source.model and request.model != self._source.model:
            text = f"All lines must name one model: {self._source.model!r}, not {request.model[:80]!r}."
            raise FaultError("mismatched_model", text, "body.model")
        # Whatever tier is named, everything in a batch is of the batch class.
        promises = replace(promised(request, {}), request_class=request.request_class or "")
        message = self._endpoint.to_generate(request, promises)
        message.model, message.adapter = split(request.model)
        if self._defaults.HasField("priority") and not message.HasField("priority"):
            message.priority = self._defaults.priority
        checked = self._checker.check(batch_pb2.BatchItem(index=index, custom_id=custom_id, request=message))
        return self._wrong(checked, line.number) if isinstance(checked, Wrong) else checked

    def _custom_id(self, found: dict[str, Any]) -> str:
        if unknown := found.keys() - _FIELDS:
            name = min(unknown)
            raise FaultError("unknown_parameter", f"Unknown parameter: '{name[:80]}'.", name)
        custom_id = found.get("custom_id")
        if custom_id is None:
            raise _missing("custom_id")
        if not isinstance(custom_id, str):
            raise _invalid("custom_id", "must be a string")
        if not custom_id:
            raise FaultError("invalid_value", "'custom_id' must not be empty.", "custom_id")
        if found.get("method") != "POST":
            raise FaultError("invalid_method", "'method' must be 'POST'.", "method")
        if found.get("url") != self._source.endpoint:
            text = f"'url' must be the batch's endpoint, {self._source.endpoint!r}."
            raise FaultError("invalid_url", text, "url")
        return custom_id

    def _wrong(self, wrong: Wrong, number: int) -> Fault:
        told = [(self._named(field), what) for field, what in wrong.violations]
        return Fault(ANSWERS[wrong.reason].code, "; ".join(map(": ".join, told)), number, told[0][0])

    def _named(self, field: str) -> str:
        """A field of an item as it is called in its line."""
        path = field.removeprefix("request")
        if path == field:
            return field
        name = renamed(path.removeprefix("."), self._endpoint.names)
        return f"body.{name}" if name else "body"


def read_object(line: NumberedLine) -> dict[str, Any]:
    """The object of a line. Raises FaultError."""
    if line.text is None:
        raise FaultError("line_too_long", "This line is longer than a request may be.")
    if too_many_values(line.text):
        raise FaultError("too_many_values", f"This line has more than {MOST_FIELDS} values.")
    try:
        found = from_json(line.text, allow_inf_nan=False)
    except ValueError as error:
        raise FaultError("invalid_json_line", f"This line is not parseable as valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FaultError("invalid_json_line", "This line is not a JSON object.")
    return found


def model_of(line: NumberedLine) -> str:
    """The model that a line names, if it names one; empty: it does not, or cannot be read."""
    try:
        body = read_object(line).get("body")
    except FaultError:
        return ""
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else ""


def _missing(name: str) -> FaultError:
    return FaultError("missing_required_parameter", f"Missing required parameter: '{name}'.", name)


def _invalid(name: str, what: str) -> FaultError:
    return FaultError("invalid_type", f"'{name}' {what}.", name)
