"""How many files are on their way at once: each takes memory for as long as its client likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.router.http.errors import RATE, HttpError, after


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is."""

    what: str
    """What is done with the files, for the refusal."""
    most: int
    most_of_one: int
    """Of one tenant."""


class Places:
    """The room of one router."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, owner: str) -> Iterator[None]:
        """One place, while it is needed; `owner` empty: tenancy is off. Raises HttpError (429)."""
        room = self._room
        most = room.most_of_one if owner else room.most
        if self._taken[owner] >= most or self._taken.total() >= room.most:
            text = f"Too many files are being {room.what} at this server already."
            raise HttpError(429, text, type=RATE, code=f"too_many_files_{room.what}", headers=after(1.0))
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]


class Download(StreamingResponse):
    """A file on its way to a client, which has a place for as long as it takes."""

    def __init__(
        self,
        place: AbstractContextManager[None],
        content: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. Raises HttpError (429) where there is no place."""
        with self._place:
            await super().__call__(scope, receive, send)
