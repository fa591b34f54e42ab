"""API keys: how they are made, and what is kept of them.

A key is `ck_<id>_<secret>` with 256 random bits as its secret. Only a SHA-256 of it is kept: slow hashes are
for secrets that people choose, and nobody guesses 256 random bits, however fast the hash. The id finds the
record.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

_PREFIX = b"chiron api key 1\0"
_SECRET_BYTES = 32
_ID_BYTES = 6
_FORM = re.compile(r"ck_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment when its secret is known."""

    key_id: str
    text: str = field(repr=False)
    """What its holder sends."""
    digest: bytes = field(repr=False)
    """What is kept."""

    @classmethod
    def draw(cls) -> NewKey:
        """A new random key."""
        key_id = secrets.token_hex(_ID_BYTES)
        secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
        text = f"ck_{key_id}_{secret}"
        return cls(key_id, text, digest_of(text))


def digest_of(text: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(_PREFIX + text.encode()).digest()


def id_of(text: str) -> str:
    """The id within a key; empty when the text is no key at all."""
    match = _FORM.fullmatch(text)
    return match[1] if match else ""


def matches(text: str, digest: bytes) -> bool:
    """Whether this is the key of which `digest` was kept."""
    return hmac.compare_digest(digest_of(text), digest)


def key_in(file: Path) -> str:
    """The key in a file, which is made with mode 0600 where it does not exist. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    with open(draft, "w", opener=_private, encoding="utf-8") as created:
        created.write(NewKey.draw().text + "\n")
    try:
        # Whole at once, and only one of several that make it at the same time.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text(encoding="utf-8").strip()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
