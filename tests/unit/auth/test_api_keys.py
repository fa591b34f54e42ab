"""API keys: what is kept of them, and what passes for one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from chiron.auth.api_keys import NewKey, digest_of, id_of, key_in, matches


def test_a_key_is_known_again_by_its_digest_and_by_nothing_less() -> None:
    key = NewKey.draw()
    assert id_of(key.text) == key.key_id
    assert matches(key.text, key.digest)
    assert not matches(key.text[:-1] + ("A" if key.text[-1] != "A" else "B"), key.digest)
    assert not matches(key.text, digest_of(NewKey.draw().text))


def test_nothing_of_the_secret_is_kept_or_shown() -> None:
    key = NewKey.draw()
    secret = key.text.rpartition("_")[2] if "_" not in key.text[16:] else key.text[16:]
    assert secret.encode() not in key.digest
    assert secret not in repr(key)
    assert len(secret) == 43, "256 bits"


@pytest.mark.parametrize(
    "text", ["", "ck_", "sk-123", "ck_0123456789ab_short", "ck_0123456789AB_" + "a" * 43]
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert id_of(text) == ""


def test_keys_are_all_different() -> None:
    assert len({NewKey.draw().text for _ in range(100)}) == 100


def test_a_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "admin.key"
    made = key_in(file)
    assert id_of(made)
    assert key_in(file) == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["admin.key"]
