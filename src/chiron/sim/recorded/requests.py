"""The requests that routers have recorded."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from chiron.sim.trace_formats import TraceError
from chiron.sim.traces import BadRow

VERSION = 1
_ENDS = ("ok", "failed", "cancelled", "refused", "unknown")
_RANK = {end: rank for rank, end in enumerate(_ENDS)}


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it was served. Times in seconds, unless the name says milliseconds."""

    key: str
    """The same at all routers."""
    arrived: float
    """Wall-clock time, in seconds since 1970."""
    model: str
    batch: bool
    prompt_tokens: int
    output_tokens: int
    """0: not known, or none came."""
    end: str
    """ok, failed, cancelled, refused or unknown."""
    reason: str = ""
    ttft_slo_ms: float = 0.0
    """0: none; likewise the next."""
    itl_slo_ms: float = 0.0
    deadline_s: float = math.inf
    """From arrival, of a batch request; inf: none."""
    ttft_ms: float = 0.0
    """0: no token came."""
    itl_mean_ms: float = 0.0
    took_s: float = math.nan
    """From arrival to the end; NaN: not known."""
    served_s: float = math.nan
    """From when its worker took it, the last one, to the end; NaN: not known."""
    preemptions: int = 0
    cached_tokens: int = 0

    @property
    def has_slo(self) -> bool:
        """Whether there is a promise to keep."""
        return math.isfinite(self.deadline_s) if self.batch else self.ttft_slo_ms > 0 or self.itl_slo_ms > 0

    @property
    def kept(self) -> bool:
        """Whether it was kept, by the figures of the worker and the router."""
        return self.end == "ok" and self.would_keep(self.ttft_ms, self.itl_mean_ms, self.took_s)

    def would_keep(self, ttft_ms: float, itl_ms: float, took_s: float) -> bool:
        """Whether an answer with these times keeps the promise."""
        if self.batch:
            return took_s <= self.deadline_s
        ttft = not self.ttft_slo_ms or ttft_ms <= self.ttft_slo_ms
        return ttft and (not self.itl_slo_ms or itl_ms <= self.itl_slo_ms)


@dataclass(frozen=True, slots=True)
class Recording:
    """Requests of all files, in order of arrival."""

    requests: tuple[RecordedRequest, ...]
    started: float
    """Wall-clock time at which the first router began, in seconds since 1970."""
    left_out: int = 0
    """Requests that routers could not write down."""
    bad_rows: tuple[BadRow, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Requests that cannot be simulated: how many, by the reason."""

    unhosted: frozenset[str] = frozenset()
    """Models whose requests are not simulated."""

    @property
    def replayed(self) -> Sequence[RecordedRequest]:
        """Those whose lengths are known, of models that the simulated cluster can host."""
        return [one for one in self.requests if one.output_tokens > 0 and one.model not in self.unhosted]

    def without(self, unhosted: Mapping[str, str]) -> Recording:
        """The same with the requests of these models skipped: model → why it cannot be simulated."""
        # What has no known length is skipped for that already.
        found = Counter(one.model for one in self.requests if one.output_tokens and one.model in unhosted)
        more = {f"model {name!r}: {unhosted[name]}": count for name, count in sorted(found.items())}
        return replace(self, skipped={**self.skipped, **more}, unhosted=frozenset(unhosted))


def read_recording(path: Path, *, strict: bool = False) -> Recording:
    """Reads a file, or all files of a folder.

    A request that several routers know counts once: as the one has it where its answer was whole.

    Args:
        path: of a file, or of a folder with `requests-*.jsonl`.
        strict: a malformed line is an error; otherwise it is listed in `bad_rows`.

    Raises:
        TraceError: nothing can be read, no line describes a request, a file of another kind or version, or,
            in strict mode, the first malformed line.
    """
    files = sorted(path.glob("requests-*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: no file of the name requests-*.jsonl is in it")
    found: dict[str, RecordedRequest] = {}
    bad: list[BadRow] = []
    left_out, starts = 0, []
    for file in files:
        started, lines = _open(file)
        if started is None:
            continue
        starts.append(started)
        for number, text in lines:
            try:
                told = json.loads(text)
                if "left_out" in told:
                    left_out += int(told["left_out"])
                    continue
                one = _request(told, started)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                row = BadRow(file, number, f"{type(error).__name__}: {error}")
                if strict:
                    raise TraceError(str(row)) from error
                bad.append(row)
                continue
            found[one.key] = _better(found.get(one.key), one)
    if not found:
        raise TraceError(f"{path}: no request in it ({len(bad)} malformed lines)")
    requests = tuple(sorted(found.values(), key=lambda one: one.arrived))
    skipped = Counter(_why(one) for one in requests if not one.output_tokens)
    if len(skipped) and skipped.total() == len(requests):
        raise TraceError(f"{path}: no request in it has known lengths ({dict(skipped)})")
    return Recording(requests, min(starts), left_out, tuple(bad), dict(skipped))


def _open(file: Path) -> tuple[float | None, Iterable[tuple[int, str]]]:
    """When the file's zero is, and its other lines with their numbers; None: it is empty."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise TraceError(f"{file}: {error.strerror or error}") from error
    if not lines:
        return None, ()
    try:
        head: Any = json.loads(lines[0])
        version, started = head["chiron_recording"], datetime.fromisoformat(head["started"]).timestamp()
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{file}: its first line is no header of a recording") from error
    if version != VERSION:
        raise TraceError(f"{file}: version {version!r} of recordings is not known, {VERSION} is")
    return started, enumerate(lines[1:], start=2)


def _request(told: Mapping[str, Any], started: float) -> RecordedRequest:
    if told["class"] not in ("interactive", "batch"):
        raise ValueError(f"class {told['class']!r}")
    if told["end"] not in _ENDS:
        raise ValueError(f"end {told['end']!r}")
    slo = told.get("slo", {})
    one = RecordedRequest(
        key=str(told["id"]),
        arrived=started + _number(told, "at", least=-math.inf),
        model=str(told["model"]),
        batch=told["class"] == "batch",
        prompt_tokens=max(1, int(_number(told, "prompt"))),
        output_tokens=int(_number(told, "output", default=0)),
        end=told["end"],
        reason=str(told.get("reason", "")),
        ttft_slo_ms=_number(slo, "ttft_ms", default=0),
        itl_slo_ms=_number(slo, "itl_ms", default=0),
        deadline_s=_number(told, "deadline_s", default=math.inf),
        ttft_ms=_number(told, "ttft_ms", default=0),
        itl_mean_ms=_number(told, "itl_mean_ms", default=0),
        took_s=_number(told, "took_s", default=math.nan),
        served_s=_number(told, "total_ms", default=math.nan) / 1e3,
        preemptions=int(_number(told, "preemptions", default=0)),
        cached_tokens=int(_number(told, "cached", default=0)),
    )
    if not one.model:
        raise ValueError("model is empty")
    return one


def _number(told: Mapping[str, Any], key: str, *, default: float | None = None, least: float = 0.0) -> float:
    value = told[key] if default is None else told.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r}")
    if value < least or (key not in told and default is None):
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _better(known: RecordedRequest | None, one: RecordedRequest) -> RecordedRequest:
    if known is None:
        return one
    return min(known, one, key=lambda each: (_RANK[each.end], -each.output_tokens))


def _why(one: RecordedRequest) -> str:
    reason = f", {one.reason}" if one.reason else ""
    return f"{one.end}{reason}: nobody knows how long its answer would have been"
