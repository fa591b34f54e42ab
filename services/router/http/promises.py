"""What is promised to a request: its class, SLO and priority, from wherever its caller has said so. Pure.

The body wins over headers, headers over `service_tier`; what none of them says is left to the key's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.http.fields import TextFields
from services.router.http.reading import invalid

CLASS, PRIORITY, REFUSE_IF_LATE = "x-chiron-class", "x-chiron-priority", "x-chiron-refuse-if-late"
TIMES: dict[str, Literal["ttft_ms", "itl_ms", "deadline_s"]] = {
    "x-chiron-ttft-ms": "ttft_ms",
    "x-chiron-itl-ms": "itl_ms",
    "x-chiron-deadline-s": "deadline_s",
}
_CLASSES = {
    "interactive": types_pb2.REQUEST_CLASS_INTERACTIVE,
    "batch": types_pb2.REQUEST_CLASS_BATCH,
}
_TIERS = {
    "default": "interactive",
    "scale": "interactive",
    "priority": "interactive",
    "fast": "interactive",
    "flex": "batch",
}
"""`auto` says nothing: the key's defaults count."""
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Promises:
    """What a caller has said; what it has not is left open."""

    request_class: Literal["", "interactive", "batch"] | str = ""
    """Empty: not said."""
    ttft_ms: float | None = None
    itl_ms: float | None = None
    deadline_s: float | None = None
    refuse_if_late: bool | None = None
    priority: int | None = None

    def put(self, message: pb.GenerateRequest) -> None:
        """Writes them into a request."""
        if self.request_class:
            message.request_class = _CLASSES[self.request_class]
        for name in ("ttft_ms", "itl_ms", "deadline_s", "refuse_if_late"):
            value = getattr(self, name)
            if value is not None:
                setattr(message.slo, name, value)
        if self.priority is not None:
            message.priority = self.priority


def promised(request: TextFields, headers: Mapping[str, str]) -> Promises:
    """What a request is promised.

    Args:
        request: its body.
        headers: its headers; names in lower case, or a mapping that does not mind.

    Raises:
        HttpError: 400, for a header that cannot be read.
    """
    slo = request.slo
    kind = request.request_class or _class(headers.get(CLASS)) or _TIERS.get(request.service_tier or "", "")
    times = {name: _time(headers.get(header), header) for header, name in TIMES.items()}
    if slo is not None:
        for name, at_header in times.items():
            said: float | None = getattr(slo, name)
            times[name] = at_header if said is None else said
    late = _flag(headers.get(REFUSE_IF_LATE))
    priority = _priority(headers.get(PRIORITY))
    return Promises(
        request_class=kind,
        ttft_ms=times["ttft_ms"],
        itl_ms=times["itl_ms"],
        deadline_s=times["deadline_s"],
        refuse_if_late=late if slo is None or slo.refuse_if_late is None else slo.refuse_if_late,
        priority=priority if request.priority is None else request.priority,
    )


def _class(said: str | None) -> str:
    if said is None:
        return ""
    kind = said.strip().lower()
    if kind not in _CLASSES:
        raise invalid(f"{CLASS}: must be interactive or batch, not {said[:40]!r}.", CLASS)
    return kind


def _time(said: str | None, header: str) -> float | None:
    if said is None:
        return None
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise invalid(f"{header}: must be a number > 0, not {said[:40]!r}.", header)
    return value


def _flag(said: str | None) -> bool | None:
    if said is None:
        return None
    if said.strip().lower() not in _FLAGS:
        raise invalid(f"{REFUSE_IF_LATE}: must be true or false, not {said[:40]!r}.", REFUSE_IF_LATE)
    return _FLAGS[said.strip().lower()]


def _priority(said: str | None) -> int | None:
    if said is None:
        return None
    try:
        value = int(said)
    except ValueError:
        value = 2**31
    if not -(2**31) <= value < 2**31:
        raise invalid(f"{PRIORITY}: must be an integer, not {said[:40]!r}.", PRIORITY)
    return value
