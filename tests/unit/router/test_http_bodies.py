"""JSON bodies at the HTTP door that are not made into objects, because it would take too long."""

from __future__ import annotations

import pytest

from chiron.rpc.reading import MOST_FIELDS
from services.router.http.bodies import too_many_values


@pytest.mark.parametrize(
    ("body", "too_many"),
    [
        (b'{"model": "' + b"a, [b] {c} " * 200_000 + b'"}', False),
        (b'{"model": "' + b'\\"' * 200_000 + b'"}', False),
        (b'{"model": "' + b"\\\\" * 200_000 + b'"}', False),
        (b"[" + b"1," * (MOST_FIELDS - 1) + b"1]", False),
        (b"[" + b"1," * MOST_FIELDS + b"1]", True),
        (b"[" * (MOST_FIELDS + 1), True),
        (b"[" + b'"",' * (3 * MOST_FIELDS) + b"1]", True),
        (b"[" + b'"\\"",' * (MOST_FIELDS + 1) + b"1]", True),
        (b"[" + b'"\\\\",' * (MOST_FIELDS + 1) + b"1]", True),
    ],
)
def test_what_is_within_strings_does_not_count(body: bytes, too_many: bool) -> None:
    assert too_many_values(body) == too_many
