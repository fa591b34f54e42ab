"""Follows vLLM's prefix cache by the KV events that its engine core publishes.

vLLM names a block by a hash that only its core can compute. Blocks have names of our own here, made of their
tokens and those before them, so that a prompt's blocks can be named without asking.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from services.worker.engines.base import OnGone

_NAME_BYTES = 16
_log = logging.getLogger(__name__)


def block_names(tokens: Sequence[int], block_tokens: int, adapter: str, salt: str) -> list[bytes]:
    """A name for each full block of a prompt, from the first."""
    names, name = [], _root(adapter, salt)
    content = array("I", tokens).tobytes()
    size = block_tokens * array("I").itemsize
    for start in range(0, len(content) - size + 1, size):
        name = _next(name, content[start : start + size])
        names.append(name)
    return names


def _root(adapter: str, salt: str) -> bytes:
    return blake2b(f"{adapter}\0{salt}".encode(), digest_size=_NAME_BYTES).digest()


def _next(before: bytes, content: bytes) -> bytes:
    return blake2b(before + content, digest_size=_NAME_BYTES).digest()


class BlockMirror:
    """vLLM's hash → our name, of the blocks that are in its cache. Pure.

    Blocks whose predecessor is unknown, because the event of its birth was lost, are left out.
    """

    def __init__(self) -> None:
        self._names: dict[Any, bytes] = {}

    def __len__(self) -> int:
        return len(self._names)

    def take(self, events: Iterable[Any]) -> list[bytes] | None:
        """Takes events in their order; returns the names of the blocks that are gone, None: all are."""
        gone: list[bytes] | None = []
        for event in events:
            kind = type(event).__name__
            if kind == "AllBlocksCleared":
                gone = None
                self._names.clear()
            elif event.group_idx:
                # A model of several kinds of attention caches each block once for each kind.
                continue
            elif kind == "BlockStored":
                self._stored(event)
            else:
                found = [self._names.pop(key, None) for key in event.block_hashes]
                if gone is not None:
                    gone += [name for name in found if name is not None]
        return gone

    def _stored(self, event: Any) -> None:
        if event.parent_block_hash is None:
            name: bytes | None = _root(event.lora_name or "", _salt(event))
        else:
            name = self._names.get(event.parent_block_hash)
        content = array("I", event.token_ids).tobytes()
        size = event.block_size * array("I").itemsize
        for number, key in enumerate(event.block_hashes):
            if name is None:
                return
            name = self._names[key] = _next(name, content[number * size : (number + 1) * size])


def _salt(event: Any) -> str:
    """The cache salt is the last of the first block's further keys; an adapter's name is the first."""
    keys: tuple[Any, ...] = (event.extra_keys or ((),))[0] or ()
    salt = keys[-1] if len(keys) > bool(event.lora_name) else ""
    return salt if isinstance(salt, str) else ""


class CacheWatch:
    """Reads the events of one engine core. Until `follow`, nothing is told."""

    def __init__(self) -> None:
        """Makes the place where the core publishes; it must be given `endpoint` when it starts."""
        self._folder = Path(tempfile.mkdtemp(prefix="chiron-kv-"))
        self.endpoint = f"ipc://{self._folder}/events"
        self._mirror = BlockMirror()
        self._on_gone: OnGone = _nobody
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to read."""
        self._task = asyncio.create_task(self._read(), name="kv events")

    def follow(self, on_gone: OnGone) -> None:
        """From now on `on_gone` is told."""
        self._on_gone = on_gone

    async def close(self) -> None:
        """Ends reading; the core must have ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.discard()

    def discard(self) -> None:
        """Removes the place where the core publishes."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _read(self) -> None:
        import zmq
        import zmq.asyncio
        from msgspec.msgpack import Decoder
        from vllm.distributed.kv_events import KVEventBatch

        decode = Decoder(type=KVEventBatch).decode
        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.SUB)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(self.endpoint)
            awaited = 0
            while True:
                _, sequence, payload = await socket.recv_multipart()
                number = int.from_bytes(sequence, "big")
                if number != awaited:
                    _log.warning("%d batches of KV events were lost", number - awaited)
                    self._on_gone(None)
                awaited = number + 1
                gone = self._mirror.take(decode(payload).events)
                if gone is None or gone:
                    self._on_gone(gone)
        except Exception:
            # Requests are served without; routers then go by what prompts find in the cache.
            _log.exception("KV events cannot be read any more")
            self._on_gone(None)
        finally:
            context.destroy(linger=0)


def _nobody(_: object) -> None:
    """Hears nothing."""
