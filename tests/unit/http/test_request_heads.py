"""What of a request's head proxies and this door could read in two ways is refused."""

from __future__ import annotations

import pytest

from services.router.http.heads import fault_of

HOST = (b"host", b"door")


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [HOST]),
        ("1.1", [(b"host", b"")]),
        ("1.0", []),
        ("1.1", [HOST, (b"transfer-encoding", b"Chunked")]),
        ("1.1", [HOST, (b"accept", b"a"), (b"accept", b"b")]),
        ("1.1", [HOST, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")]),
        ("1.1", [HOST, (b"x-chiron-class", b"batch"), (b"x-chiron-class", b"batch")]),
        ("1.1", [HOST, (b"x-chiron-class", b"batch"), (b"x-chiron-priority", b"1")]),
    ],
)
def test_a_head_that_says_one_thing_is_taken(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert fault_of(version, headers) is None


@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        ("0.9", [], "HTTP/0.9"),
        ("2.0", [HOST], "HTTP/2.0"),
        ("1.1", [], "host"),
        ("1.1", [HOST, HOST], "host"),
        ("1.0", [HOST, (b"host", b"other")], "host"),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], "transfer-encoding"),
        ("1.1", [HOST, (b"transfer-encoding", b"identity")], "transfer-encoding"),
        (
            "1.1",
            [HOST, (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")],
            "transfer-encoding",
        ),
        ("1.1", [HOST, (b"authorization", b"a"), (b"authorization", b"b")], "authorization"),
        ("1.1", [HOST, (b"x-chiron-class", b"batch"), (b"x-chiron-class", b"interactive")], "x-chiron-class"),
    ],
)
def test_a_head_that_says_two_things_or_too_little_is_not(
    version: str, headers: list[tuple[bytes, bytes]], said: str
) -> None:
    fault = fault_of(version, headers)
    assert fault is not None
    assert said in fault
