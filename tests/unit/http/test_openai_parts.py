"""How the parts of a stream reach their client: at once where it takes them, else when it does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.router.http.chat.stream import ChatChunks
from services.router.http.exchange import Exchange
from services.router.http.head import Head
from services.router.http.running import _Part
from services.router.http.streaming import Events


class Client:
    """A connection whose client takes something or does not."""

    def __init__(self) -> None:
        self.sent = b""
        self.lost = False
        self.transport = SimpleNamespace(write=self._write)
        self.flow = SimpleNamespace(write_paused=False, drain=self._drain)
        self.takes = asyncio.Event()

    def _write(self, data: bytes) -> None:
        assert not self.flow.write_paused
        self.sent += data

    async def _drain(self) -> None:
        await self.takes.wait()
        self.flow.write_paused = False


def exchange_with(client: Client, *headers: tuple[bytes, bytes]) -> Exchange:
    found = Exchange.__new__(Exchange)
    found.connection = client  # type: ignore[assignment]
    found._unframed = True
    found.scope = {"headers": list(headers)}
    return found


def message(text: str) -> bytes:
    return pb.GenerateResponse(deltas=[pb.OutputDelta(text=text, token_ids=[1])]).SerializeToString()


async def started(client: Client) -> tuple[_Part, list[Any]]:
    """What takes the messages of an answer whose first one has been told."""
    begun: list[Any] = []

    async def begin(said: Any) -> None:
        begun.append(said)

    part = _Part(0, ChatChunks(Head("chatcmpl-1", 1, "m")), Events(exchange_with(client), begin))
    await part.write(message("a"))
    return part, begun


async def test_what_a_client_takes_is_written_before_the_next_message_is_read() -> None:
    client = Client()
    part, begun = await started(client)
    assert [said["status"] for said in begun] == [200]
    before = client.sent
    writing = part.write(message("b"))
    # It does not wait: no turn of the loop is spent on a token that can leave at once.
    try:
        writing.send(None)  # type: ignore[attr-defined]
    except StopIteration:
        pass
    else:
        raise AssertionError("it waited for something")
    assert client.sent.startswith(before)
    assert client.sent.count(b'"content":"b"') == 1


async def test_what_a_client_does_not_take_is_held_back_and_written_once_it_does() -> None:
    client = Client()
    part, _ = await started(client)
    before, client.flow.write_paused = client.sent, True
    writing = asyncio.ensure_future(part.write(message("b")))
    await asyncio.sleep(0)
    assert not writing.done()
    assert client.sent == before
    client.takes.set()
    await writing
    assert client.sent.count(b'"content":"b"') == 1


async def test_nothing_is_written_to_a_client_that_left_while_it_was_waited_for() -> None:
    client = Client()
    part, _ = await started(client)
    before, client.flow.write_paused = client.sent, True
    writing = asyncio.ensure_future(part.write(message("b")))
    await asyncio.sleep(0)
    client.lost = True
    client.takes.set()
    await writing
    assert client.sent == before


async def test_of_a_header_that_is_there_twice_the_first_counts() -> None:
    twice = (b"x-chiron-class", b"batch"), (b"x-chiron-class", b"interactive")
    found = exchange_with(Client(), *twice, (b"x-note", b"\xe9"))
    assert found.headers == {"x-chiron-class": "batch", "x-note": "é"}
