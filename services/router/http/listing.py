"""What lists of kept objects are asked for, and how they are answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from services.router.http.errors import HttpError
from services.router.http.ids import made, plausible

ORDERS = ("asc", "desc")


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many objects a page has at most. Raises HttpError (400)."""
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise _wrong("limit", f"must be an integer from 1 to {most}")
    return int(text)


async def after_of(query: Mapping[str, str], prefix: str, there: Callable[[str], Awaitable[bool]]) -> str:
    """The id after which a page begins; empty: at the first.

    The object may have been deleted since: whoever goes through the pages may delete what is on them.

    Args:
        query: of the request.
        prefix: how ids of the list's objects begin.
        there: whether the list has an object of this id.

    Raises:
        HttpError: 400; no object of the list can have had it.
    """
    text = query.get("after", "")
    # Ids that were made elsewhere, by an older version for one, have no sum: they have to be there.
    if text and not made(text, prefix) and not (plausible(text) and await there(text)):
        raise _wrong("after", f"must be the id of an object of this list, and none has {text[:80]!r}")
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
