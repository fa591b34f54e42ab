"""Ways on loopback that can be slow, silent or broken."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType

_CHUNK = 65536
_IN_FLIGHT = 256
"""Chunks on their way in one direction; then the sender is held back, as a full pipe would."""


class Link:
    """Listens at `address` and passes every byte on to `target`, as well as its faults let it."""

    def __init__(self, name: str, target: str, at: str = "127.0.0.1:0") -> None:
        """Enter it to open it.

        Args:
            name: of the way.
            target: host:port where somebody listens by then, or later.
            at: host:port to listen at; port 0: any free one.
        """
        self.name = name
        self.target = target
        self.address = at
        self._delay_s = 0.0
        self._refusing = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._carrying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Link:
        self._listener = _socket()
        host, _, port = self.address.rpartition(":")
        self._listener.bind((host, int(port)))
        self._listener.listen(128)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = [self._accepting, *self._carrying]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._listener.close()

    @property
    def whole(self) -> bool:
        """True while nothing is wrong with it."""
        return self._passing.is_set() and not self._delay_s and not self._refusing

    def delay(self, seconds: float) -> None:
        """What comes in from now on takes longer by so much, in each direction."""
        self._delay_s = seconds

    def cut(self) -> None:
        """Nothing gets through; connections stay, and new ones are taken."""
        self._passing.clear()

    def reset(self) -> None:
        """Breaks every connection, and each new one at once."""
        self._refusing = True
        for task in self._carrying:
            task.cancel()

    def heal(self) -> None:
        """All is well again; what was held back goes on its way."""
        self._delay_s = 0.0
        self._refusing = False
        self._passing.set()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            connection.setblocking(False)
            if self._refusing:
                _break(connection)
                continue
            task = asyncio.create_task(self._carry(connection))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)
            # A task that is cancelled before its first step closes nothing itself.
            task.add_done_callback(lambda _, connection=connection: _break(connection))  # type: ignore[misc]

    async def _carry(self, connection: socket.socket) -> None:
        """Carries one connection until both sides have ended it, or one has broken."""
        onward = _socket()
        for end in (connection, onward):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._passing.wait()
            host, _, port = self.target.rpartition(":")
            await asyncio.get_running_loop().sock_connect(onward, (host, int(port)))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(connection, onward))
                group.create_task(self._pump(onward, connection))
            # Not by RST: the last bytes may still be on their way.
            connection.close()
            onward.close()
        except* OSError:
            # A broken side shows on the other, as it does where nothing stands between them.
            pass
        finally:
            _break(onward)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Passes one direction on until its end, which is passed on too."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

        async def receive() -> None:
            while data := await loop.sock_recv(source, _CHUNK):
                await under_way.put((loop.time() + self._delay_s, data))
            await under_way.put((loop.time() + self._delay_s, b""))

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                if (wait_s := due - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                await self._passing.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(sink, data)

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            group.create_task(deliver())


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    return made


def _break(connection: socket.socket) -> None:
    """Ends a connection by RST where it has not ended well: what is on the way is lost."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
