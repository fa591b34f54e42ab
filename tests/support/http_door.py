"""Speaks HTTP to a router's door: byte by byte, or as OpenAI's client does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from services.router.http.settings import HttpSettings

ANY = HttpSettings(listen="127.0.0.1:0")
"""A door on any free port."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found = self.json()["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


class RawConnection:
    """A socket to a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str, **options: Any) -> RawConnection:
        """Connects to `http://host:port`."""
        host, _, port = url.partition("://")[2].rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port), **options))

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Sends a head of these lines, and what follows it."""
        self.writer.write("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)

    async def answer(self) -> HttpAnswer:
        """The next answer, whose body has a length or comes in chunks."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return HttpAnswer(int(first.split()[1]), headers, body)

    async def closed(self) -> bytes:
        """What else comes until the door has closed the connection."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Leaves."""
        self.writer.close()


async def ask(url: str, *lines: str, body: bytes = b"") -> HttpAnswer:
    """One request on a connection of its own."""
    connection = await RawConnection.open(url)
    try:
        connection.send(*lines, "host: door", body=body)
        return await connection.answer()
    finally:
        connection.close()


async def get(url: str, path: str, **headers: str) -> HttpAnswer:
    """One GET."""
    return await ask(url, f"GET {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items()))


async def post(url: str, path: str, body: Any, **headers: str) -> HttpAnswer:
    """One POST of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content_type": "application/json", "content_length": str(len(content)), **headers}
    told = (f"{name.replace('_', '-')}: {text}" for name, text in lines.items())
    return await ask(url, f"POST {path} HTTP/1.1", *told, body=content)


def openai_at(url: str, api_key: str = "none", **options: Any) -> AsyncOpenAI:
    """OpenAI's own client; it retries nothing."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, **options)
