"""What the options of `chiron keys` say of a key, and how a key's terms are told to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from chiron.auth.rights import EVERY_MODEL, class_name
from chiron.cli.batch.durations import seconds_of, short
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.v1 import access_pb2 as pb
from chiron.v1 import types_pb2

PATHS: Mapping[str, str] = {
    "requests_per_s": "limits.requests_per_s",
    "tokens_per_min": "limits.tokens_per_min",
    "concurrent": "limits.concurrent",
    "allow_model": "limits.models",
    "allow_class": "limits.classes",
    "most_urgent_priority": "limits.most_urgent_priority",
    "request_class": "defaults.request_class",
    "priority": "defaults.priority",
    "ttft_ms": "defaults.slo.ttft_ms",
    "itl_ms": "defaults.slo.itl_ms",
    "deadline": "defaults.slo.deadline_s",
    "refuse_if_late": "defaults.slo.refuse_if_late",
    "max_tokens": "defaults.max_tokens",
    "expires": "expires",
}
"""Option → path within KeyTerms."""
_CLASSES = {
    "interactive": types_pb2.REQUEST_CLASS_INTERACTIVE,
    "batch": types_pb2.REQUEST_CLASS_BATCH,
}
_LONGEST_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """What the command line asked for; None and empty: not said."""

    requests_per_s: float | None = None
    tokens_per_min: int | None = None
    concurrent: int | None = None
    allow_model: tuple[str, ...] = ()
    allow_class: tuple[str, ...] = ()
    most_urgent_priority: int | None = None
    request_class: str = ""
    priority: int | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    deadline: str = ""
    refuse_if_late: bool | None = None
    max_tokens: int | None = None
    expires: str = ""
    clear: tuple[str, ...] = ()
    """Options whose value is to be taken back."""


def terms_of(options: KeyOptions, now: datetime) -> tuple[pb.KeyTerms, list[str]]:
    """The terms that the options name, and the paths of what they change. Raises CliError by option."""
    terms, paths = pb.KeyTerms(), []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name == "clear" or value is None or value in ("", ()):
            continue
        paths.append(PATHS[field.name])
        try:
            _set(terms, field.name, value, now)
        except (TypeError, ValueError) as error:
            raise CliError(f"--{_shown(field.name)}: {error}", EXIT_BAD_START) from error
    for name in options.clear:
        path = PATHS.get(_field(name))
        if path is None:
            there = ", ".join(map(_shown, PATHS))
            raise CliError(f"--clear: {name!r} is no option of a key: there are {there}", EXIT_BAD_START)
        if path in paths:
            raise CliError(f"--clear {name}: it is set as well", EXIT_BAD_START)
        paths.append(path)
    return terms, paths


def _set(terms: pb.KeyTerms, name: str, value: object, now: datetime) -> None:
    match name, value:
        case "expires", str(text):
            terms.expires.FromDatetime(_expiry(text, now))
        case "deadline", str(text):
            terms.defaults.slo.deadline_s = seconds_of(text)
        case "request_class", str(text):
            terms.defaults.request_class = _class(text)
        case "allow_class", tuple(names):
            terms.limits.classes.extend(map(_class, names))
        case "allow_model", tuple(names):
            terms.limits.models.extend(names)
        case _:
            *folders, field = PATHS[name].split(".")
            part = terms
            for folder in folders:
                part = getattr(part, folder)
            setattr(part, field, value)


def _class(text: str) -> types_pb2.RequestClass.ValueType:
    if text not in _CLASSES:
        raise ValueError(f"must be interactive or batch, not {text!r}")
    return _CLASSES[text]


def _expiry(text: str, now: datetime) -> datetime:
    """A time from now as 90d or 12h, or a date, with a time of day if need be, in UTC."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    try:
        if text[-1:].isdigit():
            raise ValueError("5 days, or 5 seconds?")
        seconds = seconds_of(text)
    except ValueError:
        raise ValueError(f"must be a time from now as 90d or 12h, or a date, not {text!r}") from None
    if seconds > 86_400 * _LONGEST_DAYS:
        raise ValueError(f"must be at most {_LONGEST_DAYS}d")
    return now + timedelta(seconds=seconds)


def limits_text(limits: pb.KeyLimits) -> str:
    """A key's own limits in one line; `as its tenant` where there are none."""
    parts = [f"{limits.requests_per_s:g} requests/s"] if limits.requests_per_s else []
    parts += [f"{limits.tokens_per_min} tokens/min"] if limits.tokens_per_min else []
    parts += [f"{limits.concurrent} at once"] if limits.concurrent else []
    if limits.models and EVERY_MODEL not in limits.models:
        parts.append(f"models {' '.join(limits.models)}")
    parts += [f"classes {' '.join(map(class_name, limits.classes))}"] if limits.classes else []
    if limits.HasField("most_urgent_priority"):
        parts.append(f"priority >= {limits.most_urgent_priority}")
    return ", ".join(parts) or "as its tenant"


def defaults_text(defaults: pb.KeyDefaults) -> str:
    """What requests get that say nothing of it; empty: nothing."""
    slo = defaults.slo
    parts = [f"class {class_name(defaults.request_class)}"] if defaults.request_class else []
    parts += [f"priority {defaults.priority}"] if defaults.HasField("priority") else []
    parts += [f"TTFT {slo.ttft_ms:g} ms"] if slo.HasField("ttft_ms") else []
    parts += [f"ITL {slo.itl_ms:g} ms"] if slo.HasField("itl_ms") else []
    parts += [f"deadline {short(slo.deadline_s)}"] if slo.HasField("deadline_s") else []
    if slo.HasField("refuse_if_late"):
        parts.append("refused if late" if slo.refuse_if_late else "not refused if late")
    parts += [f"{defaults.max_tokens} tokens"] if defaults.max_tokens else []
    return ", ".join(parts)


def state_text(key: pb.ApiKey, now: datetime) -> str:
    """Whether a key is in force, and until when."""
    if key.revoked:
        return "revoked"
    if not key.terms.HasField("expires"):
        return "in force"
    expires = key.terms.expires.ToDatetime(tzinfo=UTC)
    return f"expired {expires:%Y-%m-%d}" if expires <= now else f"until {expires:%Y-%m-%d %H:%M}"


def near_text(key: pb.ApiKey) -> str:
    """Limits of which little is left, the one with the least first."""
    uses = sorted(key.near_limits, key=lambda use: -use.share)
    return ", ".join(f"{use.limit} {100 * use.share:.0f} % at {use.router_id}" for use in uses)


def _shown(name: str) -> str:
    """The option's name as people type it."""
    return "class" if name == "request_class" else name.replace("_", "-")


def _field(shown: str) -> str:
    """The inverse."""
    name = shown.removeprefix("--").replace("-", "_")
    return "request_class" if name == "class" else name
