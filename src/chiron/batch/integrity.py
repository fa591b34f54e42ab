"""Tells whether what is kept is what was handed in, and still is as it was written. Pure."""

from __future__ import annotations

from hashlib import blake2b
from zlib import crc32

from chiron.batch.records import NewItem

WHOLE, DAMAGED, REMOVED = range(3)
"""What has become of a result since it was recorded."""


def digest(
    index: int,
    custom_id: str,
    model: str,
    prompt_tokens: int,
    max_tokens: int,
    body: bytes,
    failure: bytes = b"",
) -> bytes:
    """Tells whether two items are equal in every field, and whether an item is as it was written."""
    head = (
        f"{index},{prompt_tokens},{max_tokens},{len(custom_id)},{len(model)},{len(body)},{custom_id}{model}"
    )
    made = blake2b(head.encode(), digest_size=16)
    made.update(body)
    made.update(failure)
    return made.digest()


def item_digest(item: NewItem) -> bytes:
    """The digest of an item that is handed in."""
    return digest(
        item.index,
        item.custom_id,
        item.model,
        item.prompt_tokens,
        item.max_tokens,
        item.body,
        item.failure,
    )


def result_checksum(head: tuple[int, int, str, int], result: bytes, tail: tuple[float, int, int, int]) -> int:
    """The checksum of a result's row.

    Args:
        head: its key, the item's index and custom_id, how it ended.
        result: its bytes.
        tail: when it was recorded, whether late, attempts, what has become of it.
    """
    return crc32(result, crc32(f"{head}{tail}".encode()))


def chunk_checksum(file: int, chunk: int, data: bytes) -> int:
    """The checksum of a file's chunk; `file` is the file's number in its store."""
    return crc32(data, crc32(f"{file},{chunk}".encode()))
