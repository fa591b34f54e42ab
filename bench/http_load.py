"""The load generator of the HTTP door's benchmark, in a process of its own.

    python -m bench.http_load ADDRESS REQUESTS CONCURRENCY TOKENS INTERVAL_MS MERGED
Asks `/v1/chat/completions` at host:port for streams, on as many connections as requests are open at once,
each kept for its next request. MERGED: tokens in a message, 0: as a worker with its default settings has
it. Prints one JSON line: requests, tokens (by the words that came), events, longest_gap_ms (of each
request, between two events of it, sorted), ttft_ms (sorted), wall_s.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field

import uvloop

_DONE = b"data: [DONE]\n\n"
_LAST_CHUNK = b"0\r\n\r\n"
WORD = b" word"
_EVENT = b"data: {"


@dataclass(slots=True)
class Result:
    """What the streams of one run saw."""

    requests: int = 0
    tokens: int = 0
    events: int = 0
    """That brought tokens."""
    longest_gap_ms: list[float] = field(default_factory=list)
    """Of each request, between what came at one time and at the next."""
    ttft_ms: list[float] = field(default_factory=list)


def _request(tokens: int, interval_ms: int, merged: int) -> bytes:
    """One for `bench.paced_worker`, which reads its schedule from fields that mean something else."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": "x" * 1024}],
        "stream": True,
        "max_tokens": tokens,
        "top_k": interval_ms,
        "min_tokens": min(merged, tokens),
    }
    raw = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def _one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, result: Result
) -> None:
    begun = time.perf_counter()
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"error: {head.decode()}{(await reader.read(4096)).decode()}")
    first, tail, words, events = True, b"", 0, 0
    last, gap = begun, 0.0
    while True:
        data = await reader.read(1 << 16)
        if not data:
            raise SystemExit("error: the connection ended in the middle of a stream")
        now = time.perf_counter()
        if first:
            first = False
            result.ttft_ms.append((now - begun) * 1000)
        else:
            gap = max(gap, now - last)
        last = now
        # A word may be cut between two reads, and the end too.
        seen = tail + data
        words += seen.count(WORD) - tail.count(WORD)
        events += seen.count(_EVENT) - tail.count(_EVENT)
        tail = seen[-64:]
        if tail.endswith(_LAST_CHUNK):
            break
    if _DONE not in tail:
        raise SystemExit(f"error: a stream ended without [DONE]: {tail!r}")
    result.requests += 1
    # The last token of a stream has no word.
    result.tokens += words + 1
    result.events += events
    result.longest_gap_ms.append(gap * 1000)


async def run(
    address: str, requests: int, concurrency: int, tokens: int, interval_ms: int, merged: int
) -> dict[str, object]:
    """Keeps `concurrency` requests open until `requests` have ended."""
    host, _, port = address.rpartition(":")
    raw, result = _request(tokens, interval_ms, merged), Result()
    lines = [await asyncio.open_connection(host, int(port)) for _ in range(concurrency)]
    indexes = iter(range(requests))

    async def lane(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in indexes:
            await _one(reader, writer, raw, result)

    begun = time.perf_counter()
    await asyncio.gather(*(lane(*line) for line in lines))
    wall = time.perf_counter() - begun
    for _, writer in lines:
        writer.close()
    return {
        "requests": result.requests,
        "tokens": result.tokens,
        "events": result.events,
        "longest_gap_ms": sorted(result.longest_gap_ms),
        "ttft_ms": sorted(result.ttft_ms),
        "wall_s": wall,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(sys.argv[1], *map(int, sys.argv[2:])))))
