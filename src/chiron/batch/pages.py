"""Tokens of pages: where the next one begins, and that it is this tenant's. Pure."""

from __future__ import annotations

from zlib import crc32


def page_token(tenant: str, below: int) -> str:
    """The token of the page whose batches have smaller numbers than this one."""
    return f"{below:x}-{crc32(f'{tenant} {below}'.encode()):08x}"


def read_page_token(tenant: str, token: str) -> int:
    """The number that a token was made of. Raises ValueError for a token that no page has returned."""
    try:
        below = int(token.partition("-")[0], 16)
    except ValueError:
        below = -1
    if token != page_token(tenant, below):
        raise ValueError(f"page token {token!r} is not one that a page of tenant {tenant!r} has returned")
    return below
