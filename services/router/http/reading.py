"""From the bytes of a request's body to its fields, or to one error that names what is wrong. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from services.router.http.errors import HttpError
from services.router.http.fields import Refusal

Read = TypeVar("Read", bound=BaseModel)
_MOST_LISTED = 1000
"""Places that are wrong beyond which none is looked for that says most: to list them takes long."""
_LENGTHS = {
    "too_short": "must have at least {min_length} entries, not {actual_length}",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}
"""pydantic's names of wrong lengths → what a caller is told of them."""
_TYPES = {
    "str": "a string",
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
}
"""pydantic's names of types → what a caller calls them."""


def invalid(
    message: str, param: str | None = None, code: str | None = "invalid_value", *, status: int = 400
) -> HttpError:
    """A request that can never work as it is."""
    return HttpError(status, message, type="invalid_request_error", param=param, code=code)


def parsed(body: bytes | str) -> dict[str, Any]:
    """The JSON object of a body. Raises HttpError: it is none, or holds what JSON does not know."""
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(
            f"We could not parse the JSON body of your request: {error}", code="invalid_json"
        ) from None
    if not isinstance(found, dict):
        text = f"The JSON body of your request must be an object, not {_kind(found)}."
        raise invalid(text, code="invalid_json")
    return found


def read(
    kind: type[Read],
    found: Mapping[str, Any],
    accepted: Collection[str] = (),
    refused: Mapping[str, Refusal] | None = None,
    *,
    at: str = "",
) -> Read:
    """The fields of an object.

    Args:
        kind: what it should be.
        found: it, as JSON has it. A field that is null is as one that is not there.
        accepted: fields of any value that have no effect.
        refused: known fields that only may have a value without effect.
        at: where the object is in the body; empty: it is the body.

    Raises:
        HttpError: 400, with the first field that does not fit.
    """
    fields: dict[str, Any] = {}
    for name, value in found.items():
        if value is None or name in accepted:
            continue
        if refused and name in refused:
            neutral, why = refused[name]
            if not any(
                value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
            ):
                raise invalid(f"{name}: {why}.", name, "unsupported_parameter")
            continue
        fields[name] = value
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        if (places := error.error_count()) > _MOST_LISTED:
            raise invalid(f"The body is wrong in {places} places.", at or None) from None
        wrong = error.errors(include_url=False, include_context=True, include_input=True)
        raise _told(_first(wrong), at) from None


def _first(wrong: Sequence[ErrorDetails]) -> ErrorDetails:
    """The one that the others may follow from: the kind of an object, then what is missing or unknown."""

    def rank(each: ErrorDetails) -> int:
        if each["type"] == "literal_error" and each["loc"][-1] == "type":
            return 0
        return {"missing": 1, "extra_forbidden": 2}.get(each["type"], 3)

    return min(wrong, key=rank)


def _told(wrong: ErrorDetails, at: str) -> HttpError:
    param = path((at, *wrong["loc"]) if at else wrong["loc"])
    if wrong["type"] == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if wrong["type"] == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    stem = wrong["type"].removesuffix("_type")
    if stem in _TYPES and wrong["type"].endswith("_type"):
        text = (
            f"Invalid type for '{param}': expected {_TYPES[stem]}, but got {_kind(wrong['input'])} instead."
        )
        return invalid(text, param, "invalid_type")
    if (length := _LENGTHS.get(wrong["type"])) is not None:
        what = "must not be empty" if wrong["input"] in ([], "") else length.format(**wrong["ctx"])
        return invalid(f"Invalid value for '{param}': {what}.", param)
    what = wrong["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return invalid(f"Invalid value for '{param}': {what}, not {reprlib.repr(wrong['input'])}.", param)


def path(loc: Sequence[int | str]) -> str:
    """Where a field is, as `messages[0].content`."""
    told = ""
    for each in loc:
        told += f"[{each}]" if isinstance(each, int) else f".{each}" if told else each
    return told


def _kind(value: object) -> str:
    """What a caller calls the type of a value."""
    if value is None:
        return "null"
    return _TYPES.get(type(value).__name__, type(value).__name__)
