"""A TCP link on loopback that a test can freeze: what is sent then arrives nowhere, and nothing is closed."""

from __future__ import annotations

import asyncio
import contextlib


class Link:
    """Forwards every connection made to `address` to the target."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._open = asyncio.Event()
        self._open.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.address = ""

    async def start(self) -> Link:
        """Listens on any free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def freeze(self) -> None:
        """From now on nothing gets through, on connections new and old."""
        self._open.clear()

    def thaw(self) -> None:
        """What was held up goes on."""
        self._open.set()

    async def stop(self) -> None:
        """Cuts every connection."""
        self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            both = [self._pump(reader, far_writer), self._pump(far_reader, writer)]
            pumps = [asyncio.create_task(one) for one in both]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                far_writer.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pumps.discard(task)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
