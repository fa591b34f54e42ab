"""What lists of kept objects are asked for, and how they are answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.router.http.errors import HttpError
from services.router.http.ids import made

ORDERS = ("asc", "desc")


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many objects a page has at most. Raises HttpError (400)."""
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise _wrong("limit", f"must be an integer from 1 to {most}")
    return int(text)


def after_of(query: Mapping[str, str], prefix: str) -> str:
    """The id after which a page begins; empty: at the first. The object may have been deleted since.

    Raises HttpError (400): no object of the list, whose ids begin with `prefix`, has ever had it.
    """
    text = query.get("after", "")
    if text and not made(text, prefix):
        raise _wrong("after", f"must be the id of an object of this list, which begins with '{prefix}'")
    return text


def ascending_of(query: Mapping[str, str]) -> bool:
    """Whether the oldest come first. Raises HttpError (400)."""
    text = query.get("order", "desc")
    if text not in ORDERS:
        raise _wrong("order", f"must be one of {', '.join(ORDERS)}")
    return text == "asc"


def page_of(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """The page of these objects, of which there may be one more than the page has."""
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def _wrong(name: str, what: str) -> HttpError:
    return HttpError(400, f"'{name}' {what}.", param=name, code="invalid_value")
