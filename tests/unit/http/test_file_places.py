"""Files on their way are bounded, by tenant and in all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest

from services.router.http.errors import HttpError
from services.router.http.files.places import Download, Places, Room

ROOM = Room("read", 5, 2)


def test_a_tenant_and_all_of_them_have_so_many_places() -> None:
    places = Places(ROOM)
    with ExitStack() as taken:
        for owner in ("acme", "acme", "lab", "lab"):
            taken.enter_context(places.taken(owner))
        with pytest.raises(HttpError) as raised, places.taken("acme"):
            pass
        assert (raised.value.status, raised.value.code) == (429, "too_many_files_read")
        assert raised.value.headers["retry-after"] == "1"
        taken.enter_context(places.taken("web"))
        with pytest.raises(HttpError), places.taken("other"):
            pass
    for _ in range(2):
        with places.taken("other"):
            pass


def test_where_nobody_is_asked_one_may_have_all_places() -> None:
    places = Places(ROOM)
    with ExitStack() as taken:
        for _ in range(5):
            taken.enter_context(places.taken(""))
        with pytest.raises(HttpError), places.taken(""):
            pass


@pytest.mark.parametrize("fails", [False, True])
async def test_a_download_has_its_place_for_as_long_as_it_takes(fails: bool) -> None:
    places, seen = Places(Room("read", 1, 1)), []

    async def content() -> AsyncIterator[bytes]:
        for part in (b"a", b"b"):
            with pytest.raises(HttpError), places.taken("acme"):
                pass
            yield part
        if fails:
            raise OSError("the client has gone")

    async def send(message: Any) -> None:
        seen.append(message.get("body"))

    async def receive() -> Any:
        raise AssertionError("nothing is awaited of the client")

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    download = Download(places.taken("acme"), content(), headers={}, media_type="x/y")
    try:
        await download(scope, receive, send)
    except Exception:
        assert fails
    assert seen[1:3] == [b"a", b"b"]
    with places.taken("acme"):
        pass
