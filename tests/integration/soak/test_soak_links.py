"""The soak test's links: whole, slow, silent, broken, and whole again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from tests.soak.doors import doors, free_range, port_of
from tests.soak.links import Link

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """Leads to a server that sends everything back, and ends when its client does."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Link("l", f"127.0.0.1:{port}") as link:
        yield link


opened: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Closes what a test has opened, the server's side with it."""
    yield
    while opened:
        opened.pop().close()
    await asyncio.sleep(0)


async def connect(link: Link) -> Connection:
    host, _, port = link.address.rpartition(":")
    connection = await asyncio.open_connection(host, int(port))
    opened.append(connection[1])
    return connection


async def said(connection: Connection, text: bytes) -> bytes:
    """What comes back."""
    reader, writer = connection
    writer.write(text)
    return await reader.readexactly(len(text))


async def nothing_comes(connection: Connection) -> bool:
    reading = asyncio.ensure_future(connection[0].read(1))
    done, _ = await asyncio.wait({reading}, timeout=0.1)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return not done


async def test_a_whole_link_passes_every_byte_and_the_end(link: Link) -> None:
    connection = await connect(link)
    text = bytes(range(256)) * 4096
    assert await said(connection, text) == text
    connection[1].write_eof()
    assert await connection[0].read() == b""
    assert link.whole


async def test_a_slow_link_delays_and_keeps_the_order(link: Link) -> None:
    connection = await connect(link)
    await said(connection, b"x")
    link.delay(0.15)
    assert not link.whole
    begin = asyncio.get_running_loop().time()
    assert await said(connection, b"abc") == b"abc"
    # There and back.
    assert asyncio.get_running_loop().time() - begin >= 0.3


async def test_a_cut_link_is_silent_until_it_heals_and_loses_nothing(link: Link) -> None:
    connection = await connect(link)
    await said(connection, b"x")
    link.cut()
    assert not link.whole
    connection[1].write(b"held")
    late = await connect(link)
    late[1].write(b"too")
    assert await nothing_comes(connection)
    assert await nothing_comes(late)
    link.heal()
    assert await connection[0].readexactly(4) == b"held"
    assert await late[0].readexactly(3) == b"too"
    assert link.whole


async def test_a_reset_breaks_what_is_open_and_what_is_new_until_it_heals(link: Link) -> None:
    connection = await connect(link)
    await said(connection, b"x")
    link.reset()
    assert not link.whole
    with pytest.raises(ConnectionResetError):
        await connection[0].readexactly(1)
    with pytest.raises(ConnectionError):
        await broken(link)
    link.heal()
    assert await said(await connect(link), b"again") == b"again"


async def broken(link: Link) -> None:
    """Talks over a new connection; raises what the breach does to it."""
    reader, writer = await connect(link)
    writer.write(b"x")
    if await reader.read(1) == b"":
        raise ConnectionResetError("reset at the end")


async def test_nobody_behind_it_shows_as_a_broken_connection() -> None:
    async with Link("l", "127.0.0.1:1") as link:
        with pytest.raises(ConnectionResetError):
            await broken(link)


async def test_leaving_it_breaks_what_is_open(link: Link) -> None:
    async with Link("m", link.target) as other:
        connection = await connect(other)
        await said(connection, b"x")
    with pytest.raises(ConnectionResetError):
        await connection[0].readexactly(1)


async def test_a_link_can_be_where_its_target_could_be_too_but_for_the_host(link: Link) -> None:
    [port] = free_range(1)
    assert port_of(os.getpid()) is None
    [door] = doors(2, range(port, port + 1))
    assert (door.target, door.address) == (f"127.0.0.1:{port}", f"127.0.1.3:{port}")
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port), door:
        assert door.address == f"127.0.1.3:{port}"
        await connect(door)
    async with Link("elsewhere", link.target, "127.0.1.3:0") as elsewhere:
        assert await said(await connect(elsewhere), b"hello") == b"hello"
