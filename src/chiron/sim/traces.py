"""Traces of real requests: reading them, and scaling their arrival rate.

A row that does not describe a request is reported with its file and line, and counted: in strict mode the
first one ends the reading, otherwise the rest is used. Rows that describe a request that the recorded system
failed to serve are skipped and counted apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chiron.sim.trace_formats import FORMATS, Entries, Row, Skipped, TraceError

MOST_GAP_S = 2 * 86_400.0
"""Between two requests that follow each other: more is a wrong timestamp or a hole in the recording, and a
replay would spend minutes on it in which nothing happens."""
MOST_SPAN_S = 366 * 86_400.0
"""From the first request to the last."""
MOST_IN_VAIN = 10_000
"""Rows that are read in search of the first request: a file without one among them is of another format."""
_PACKED = ((b"\x1f\x8b", "gzipped"), (b"\x28\xb5\x2f\xfd", "packed by zstd"), (b"PK\x03\x04", "zipped"))
"""How packed files begin."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that does not describe a request."""

    file: Path
    line: int
    """From 1."""
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    file: Path
    format: str
    arrival_s: NDArray[np.float64] | None
    """From the first request's, ascending; None: the format records no times."""
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    blocks: tuple[tuple[int, ...], ...] | None = None
    """Ids of each prompt's blocks of `block_tokens` tokens, equal ids meaning equal prompts up to there."""
    block_tokens: int = 0
    bad_rows: tuple[BadRow, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Well-formed rows without a request to serve: how many, by the reason."""
    estimated: bool = False
    """Lengths are estimates from the text's length, for the format records no tokens."""

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate; 0 when there are no times or all are equal."""
        if self.arrival_s is None or len(self) < 2 or self.arrival_s[-1] <= 0:
            return 0.0
        return (len(self) - 1) / float(self.arrival_s[-1])


def read_trace(file: Path, trace_format: str, *, strict: bool) -> Trace:
    """Reads a trace.

    Args:
        file: the trace.
        trace_format: azure, burstgpt, mooncake or sharegpt.
        strict: a malformed row is an error; otherwise it is listed in `bad_rows`.

    Raises:
        TraceError: unknown format, unreadable file, missing columns, no request at all, or, in strict mode,
            the first malformed row, by file and line. Also times that are further apart than `MOST_GAP_S` or
            `MOST_SPAN_S`, and a file of other contents: empty, packed, or without a request among its first
            `MOST_IN_VAIN` rows.
    """
    if trace_format not in FORMATS:
        raise TraceError(f"unknown trace format {trace_format!r}: known are {', '.join(sorted(FORMATS))}")
    kind = FORMATS[trace_format]
    numbered: list[tuple[int, Row]] = []
    bad: list[BadRow] = []
    skipped: Counter[str] = Counter()
    for line, row in _entries(file, trace_format):
        if isinstance(row, Row):
            numbered.append((line, row))
        elif isinstance(row, Skipped):
            skipped[row.reason] += 1
        elif strict:
            raise TraceError(str(BadRow(file, line, row)))
        else:
            bad.append(BadRow(file, line, row))
            if len(bad) >= MOST_IN_VAIN and not numbered:
                raise TraceError(
                    f"{file}: its first {len(bad):,} rows are malformed, beginning with {bad[0]}"
                )
    if not numbered:
        left_out = f"{len(bad)} malformed rows, {skipped.total()} skipped"
        raise TraceError(f"{file}: no request in it ({left_out})")
    if kind.timed:
        numbered.sort(key=lambda entry: entry[1].time_s)
    rows = [row for _, row in numbered]
    times = np.array([row.time_s for row in rows]) - rows[0].time_s if kind.timed else None
    if times is not None:
        _check_span(file, times, [line for line, _ in numbered])
    return Trace(
        file=file,
        format=trace_format,
        arrival_s=times,
        prompt_tokens=np.array([row.prompt_tokens for row in rows], dtype=np.int32),
        output_tokens=np.array([row.output_tokens for row in rows], dtype=np.int32),
        blocks=tuple(row.blocks for row in rows) if kind.block_tokens else None,
        block_tokens=kind.block_tokens,
        bad_rows=tuple(bad),
        skipped=dict(skipped),
        estimated=kind.estimated,
    )


def _check_span(file: Path, times: NDArray[np.float64], lines: list[int]) -> None:
    gaps = np.diff(times)
    if len(gaps) and gaps.max() > MOST_GAP_S:
        at = int(gaps.argmax()) + 1
        # Of the two sides, the one with fewer requests is likely to be the wrong one.
        wrong, other, which = (at - 1, at, "before") if at <= len(times) // 2 else (at, at - 1, "after")
        raise TraceError(
            f"{file}:{lines[wrong]}: arrives {days(gaps[at - 1])} {which} the next request in "
            f"time (line {lines[other]}), at most {MOST_GAP_S / 86_400:g} days: a wrong timestamp, or a hole "
            "at which to cut the trace in two?"
        )
    if times[-1] > MOST_SPAN_S:
        raise TraceError(
            f"{file}:{lines[-1]}: arrives {days(times[-1])} after the first request (line "
            f"{lines[0]}), at most {MOST_SPAN_S / 86_400:g} days"
        )


def days(seconds: float) -> str:
    """A time for a message, in days."""
    number = seconds / 86_400
    return f"{number:,.1f} days" if number < 1e6 else f"{number:.3g} days"


def _entries(file: Path, trace_format: str) -> Entries:
    try:
        with file.open("rb") as raw:
            start = raw.peek(4)
            if not start:
                raise TraceError(f"{file}: the file is empty")
            for magic, how in _PACKED:
                if start.startswith(magic):
                    raise TraceError(f"{file}: looks {how}: unpack it first")
            # Bytes that are no text make their own row malformed, not the file unreadable.
            stream = TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="")
            yield from FORMATS[trace_format].rows(file, stream)
    except OSError as error:
        raise TraceError(f"{file}: {error.strerror or error}") from error


def first_requests(trace: Trace, count: int) -> Trace:
    """The first `count` requests."""
    return _select(trace, np.arange(min(count, len(trace))))


def compressed(trace: Trace, rate_per_s: float) -> Trace:
    """The same requests at another mean rate: all times are multiplied by one factor.

    The burstiness stays; the trace gets as much shorter as the rate gets higher. Raises TraceError when the
    trace records no times.
    """
    times = _times(trace)
    factor = trace.rate_per_s / _rate(rate_per_s)
    return replace(trace, arrival_s=times * factor)


def multiplied(
    trace: Trace, rate_per_s: float, generator: np.random.Generator, *, jitter_s: float = 30.0
) -> Trace:
    """As many or as few requests as another mean rate needs, over the same time.

    Each request comes floor(f) times, and once more with probability f - floor(f), f the ratio of the rates.
    The first copy keeps its time; others are moved by up to `jitter_s` either way, reflected at the ends, so
    that what changes over longer times than that stays and copies do not come in step. Raises TraceError
    when the trace records no times.
    """
    times = _times(trace)
    factor = _rate(rate_per_s) / trace.rate_per_s
    copies = np.full(len(trace), math.floor(factor))
    copies += generator.random(len(trace)) < factor - math.floor(factor)
    chosen = np.repeat(np.arange(len(trace)), copies)
    is_first = np.ones(len(chosen), dtype=bool)
    is_first[1:] = chosen[1:] != chosen[:-1]
    moved = times[chosen] + np.where(is_first, 0.0, generator.uniform(-jitter_s, jitter_s, len(chosen)))
    end = float(times[-1])
    moved = np.clip(np.where(moved > end, 2 * end - moved, np.abs(moved)), 0.0, end)
    order = np.argsort(moved, kind="stable")
    return replace(_select(trace, chosen[order]), arrival_s=moved[order])


def prefix_hashes(trace: Trace, block_size: int) -> tuple[tuple[int, ...], ...] | None:
    """Hashes of each prompt's full blocks of `block_size` tokens, or None when the trace records none.

    Raises TraceError unless `block_size` divides the trace's own block.
    """
    if trace.blocks is None:
        return None
    parts, rest = divmod(trace.block_tokens, block_size)
    if rest:
        raise TraceError(
            f"{trace.file}: blocks of {trace.block_tokens} tokens cannot be cut into blocks of {block_size}"
        )
    return tuple(
        tuple(block * parts + part for block in blocks for part in range(parts))[: int(prompt) // block_size]
        for blocks, prompt in zip(trace.blocks, trace.prompt_tokens, strict=True)
    )


def _select(trace: Trace, index: NDArray[np.intp]) -> Trace:
    return replace(
        trace,
        arrival_s=None if trace.arrival_s is None else trace.arrival_s[index],
        prompt_tokens=trace.prompt_tokens[index],
        output_tokens=trace.output_tokens[index],
        blocks=None if trace.blocks is None else tuple(trace.blocks[at] for at in index),
    )


def arrivals_of(trace: Trace) -> NDArray[np.float64]:
    """Its arrival times. Raises TraceError when it records none."""
    if trace.arrival_s is None:
        raise TraceError(f"{trace.file}: format {trace.format} records no arrival times")
    return trace.arrival_s


def _times(trace: Trace) -> NDArray[np.float64]:
    if arrivals_of(trace)[-1] <= 0:
        raise TraceError(f"{trace.file}: all requests arrive at once, so there is no rate to scale")
    return arrivals_of(trace)


def _rate(rate_per_s: float) -> float:
    if not 0 < rate_per_s < math.inf:
        raise TraceError(f"rate_per_s: must be a number > 0, not {rate_per_s:g}")
    return rate_per_s
