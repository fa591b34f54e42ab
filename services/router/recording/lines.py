"""The lines of a recording. Pure.

The first line of a file is its header, each other one a request, or a note of what was left out. Times are in
seconds from the header's `started`, by the router's monotonic clock; the files of one run have the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.words import RequestClass
from services.router.request import PendingRequest

VERSION = 1


@dataclass(slots=True, eq=False)
class Record:
    """One request under way, or ended."""

    request_id: str
    arrived: float
    """Monotonic time, in seconds."""
    fields: dict[str, Any]
    ended: worker_pb2.EndedRequest | None = None
    """What the last worker that had it told of its end."""
    attempts: int = 1
    resumes: int = 0
    took_s: float | None = None
    """From its arrival until this router knew of its end."""
    due: float = field(default=0.0)
    """Monotonic time at which it is written with what is known, in seconds."""
    end: str = "unknown"
    reason: str = ""
    handed_back: bool = False
    """Whether it waits in this router to go on elsewhere, for as long as that takes."""


def header(started: str, router_id: str, models: Iterable[control_pb2.RoutedModel]) -> str:
    """A file's first line.

    Args:
        started: the wall-clock time of its zero, ISO 8601.
        router_id: who records.
        models: as the router knows them.
    """
    known = {
        model.name: {
            "spec_version": model.spec_version,
            "slo_defaults": json_format.MessageToDict(model.slo_defaults, preserving_proto_field_name=True),
        }
        for model in models
    }
    return _line({"chiron_recording": VERSION, "started": started, "router": router_id, "models": known})


def opened(request: PendingRequest, arrived: float, tenant: int, name: str = "") -> Record:
    """A request that has come; nothing of its content is taken.

    Args:
        request: as it is placed.
        arrived: at the first door, monotonic, in seconds.
        tenant: whose it is, as a number.
        name: what tells it from others at all routers; empty: its id.
    """
    slo = {field.name: value for field, value in request.slo.ListFields()}
    fields: dict[str, Any] = {
        "id": hashlib.sha256(f"{request.tenant}\0{name or request.request_id}".encode()).hexdigest()[:16],
        "model": request.model,
        "class": "batch" if request.request_class is RequestClass.BATCH else "interactive",
        "tenant": tenant,
        "priority": request.priority,
        "prompt": request.prompt_tokens,
        "choices": request.choices,
        "slo": slo,
    }
    if request.request_class is RequestClass.BATCH and request.deadline is not None:
        fields["deadline_s"] = round(request.deadline - arrived, 6)
    return Record(request.request_id, arrived, fields)


def line(record: Record, zero: float) -> str:
    """The request's line, in a file whose zero is the monotonic time `zero`."""
    told: dict[str, Any] = {"at": round(record.arrived - zero, 6), **record.fields}
    told["end"] = record.end
    if record.reason:
        told["reason"] = record.reason
    ended = record.ended
    if ended is not None:
        told["prompt"] = ended.usage.prompt_tokens
        told["output"] = ended.usage.completion_tokens
        told["cached"] = ended.usage.cached_prompt_tokens
        timing = ended.timing
        for name in ("ttft_ms", "itl_mean_ms", "total_ms"):
            told[name] = round(getattr(timing, name), 3)
        told["preemptions"] = timing.preemptions
        told["instance"] = timing.instance_id
    if record.took_s is not None:
        told["took_s"] = round(record.took_s, 6)
    told["attempts"], told["resumes"] = record.attempts, record.resumes
    return _line(told)


def left_out(count: int) -> str:
    """Says that so many requests were left out at this place."""
    return _line({"left_out": count})


def _line(told: Mapping[str, Any]) -> str:
    return json.dumps(told, separators=(",", ":"), allow_nan=False) + "\n"
