"""The one table from Chiron's errors to HTTP status, and OpenAI's error objects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from chiron.rpc.errors import OVER_CONTEXT, ChironError, Reason, told_by
from services.router.proxy import WorkerStatusError

INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
_RETRY_S = 1.0
"""After which one that is to come again may, where nothing better is known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one reason is told."""

    status: int
    type: str
    code: str
    retry: bool = False
    """Whether the same request may succeed later. OpenAI's clients retry by status, unless they are told."""
    param: str | None = None


ANSWERS: Mapping[Reason, Answer] = {
    Reason.INVALID_ARGUMENT: Answer(400, INVALID, "invalid_value"),
    Reason.MODEL_NOT_FOUND: Answer(404, INVALID, "model_not_found", param="model"),
    Reason.ADAPTER_NOT_FOUND: Answer(404, INVALID, "model_not_found", param="model"),
    Reason.NODE_NOT_FOUND: Answer(404, INVALID, "not_found"),
    Reason.DECISION_NOT_FOUND: Answer(404, INVALID, "not_found"),
    Reason.INSTANCE_NOT_FOUND: Answer(404, INVALID, "not_found"),
    Reason.VERSION_NOT_FOUND: Answer(404, INVALID, "not_found"),
    Reason.DUPLICATE_REQUEST: Answer(409, INVALID, "duplicate_request"),
    Reason.QUEUE_FULL: Answer(429, RATE, "queue_full", retry=True),
    Reason.SLO_OUT_OF_REACH: Answer(429, RATE, "slo_out_of_reach", retry=True),
    Reason.NO_INSTANCE: Answer(503, SERVER, "no_instance", retry=True),
    Reason.RETRY_ELSEWHERE: Answer(503, SERVER, "unavailable", retry=True),
    Reason.STREAM_INTERRUPTED: Answer(503, SERVER, "stream_interrupted", retry=True),
    Reason.ENGINE_DEAD: Answer(503, SERVER, "unavailable", retry=True),
    Reason.DEADLINE_EXCEEDED: Answer(504, SERVER, "deadline_exceeded"),
    Reason.CANNOT_RESUME: Answer(503, SERVER, "stream_interrupted", retry=True),
    Reason.READER_STALLED: Answer(408, INVALID, "reader_stalled"),
    Reason.ABORTED: Answer(503, SERVER, "aborted", retry=True),
    Reason.BUSY: Answer(409, INVALID, "busy", retry=True),
    Reason.STALE_TERM: Answer(503, SERVER, "unavailable", retry=True),
    Reason.NOT_LEADER: Answer(503, SERVER, "unavailable", retry=True),
    Reason.STORE_UNAVAILABLE: Answer(503, SERVER, "store_unavailable", retry=True),
    Reason.NOT_CONTROL_SOCKET: Answer(403, INVALID, "permission_denied"),
    Reason.NOT_LOCAL: Answer(403, INVALID, "permission_denied"),
    Reason.CREDENTIALS_MISSING: Answer(401, INVALID, "missing_api_key"),
    Reason.KEY_INVALID: Answer(401, INVALID, "invalid_api_key"),
    Reason.KEY_REVOKED: Answer(401, INVALID, "api_key_revoked"),
    Reason.KEY_EXPIRED: Answer(401, INVALID, "api_key_expired"),
    Reason.TENANT_UNKNOWN: Answer(403, INVALID, "tenant_unknown"),
    Reason.NOT_ALLOWED: Answer(403, INVALID, "permission_denied"),
    Reason.QUOTA_EXCEEDED: Answer(429, RATE, "quota_exceeded"),
    Reason.TOO_MANY_ABANDONED: Answer(429, RATE, "too_many_abandoned", retry=True),
    Reason.KEY_NOT_FOUND: Answer(404, INVALID, "not_found"),
    Reason.TENANT_NOT_FOUND: Answer(404, INVALID, "not_found"),
    # Tickets are between routers and workers: whoever calls here has none, and no part in what is wrong.
    Reason.TICKET_REQUIRED: Answer(500, SERVER, "internal_error"),
    Reason.TICKET_INVALID: Answer(500, SERVER, "internal_error"),
    Reason.TICKET_KEY_UNKNOWN: Answer(503, SERVER, "unavailable", retry=True),
    Reason.TICKET_EXPIRED: Answer(503, SERVER, "unavailable", retry=True),
    Reason.TICKET_USED: Answer(500, SERVER, "internal_error"),
    Reason.TICKET_MISMATCH: Answer(500, SERVER, "internal_error"),
    Reason.NO_BATCH_QUEUE: Answer(501, SERVER, "no_batch_queue"),
    Reason.BATCH_NOT_FOUND: Answer(404, INVALID, "batch_not_found"),
    Reason.BATCH_EXISTS: Answer(409, INVALID, "batch_exists"),
    Reason.BATCH_STATE: Answer(409, INVALID, "batch_state"),
    Reason.BATCH_QUEUE_FULL: Answer(429, RATE, "batch_queue_full", retry=True),
    Reason.BATCH_BROKEN_OFF: Answer(409, INVALID, "batch_broken_off", retry=True),
    Reason.CANCELLED: Answer(499, INVALID, "cancelled"),
    Reason.ATTEMPTS_EXHAUSTED: Answer(500, SERVER, "attempts_exhausted"),
    Reason.INTERNAL: Answer(500, SERVER, "internal_error"),
}
_BY_STATUS: Mapping[grpc.StatusCode, Reason] = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.QUEUE_FULL,
    grpc.StatusCode.UNAVAILABLE: Reason.RETRY_ELSEWHERE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED: Reason.ABORTED,
}
"""What a worker means that gives no reason: gRPC itself has spoken."""


class HttpError(Exception):
    """A refusal in the words of this door."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,  # OpenAI's name for it.
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def object(self) -> dict[str, Any]:
        """What the client is sent: `{"error": {...}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """The same as JSON."""
        return json.dumps(self.object(), ensure_ascii=False, separators=(",", ":")).encode()


def told(error: BaseException, fields: Mapping[str, str]) -> HttpError:
    """What went wrong with a request, in this door's words; `fields` as in `of_chiron`."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, ChironError):
        return of_chiron(error, fields)
    if isinstance(error, WorkerStatusError):
        return of_worker(error, fields)
    text = "the server failed to answer this request"
    return HttpError(500, text, type=SERVER, code="internal_error")


def of_chiron(error: ChironError, fields: Mapping[str, str] | None = None) -> HttpError:
    """The error as HTTP tells it.

    Args:
        error: from anywhere behind the door.
        fields: where a field of Chiron's API is called something else here: the longest beginning of its path
            that is listed is replaced.
    """
    answer = ANSWERS[error.reason]
    message, param = error.message, answer.param
    if error.violations:
        told = [(renamed(field, fields or {}), what) for field, what in error.violations]
        message = "; ".join(f"{field}: {what}" for field, what in told)
        param = told[0][0] or None
    headers: dict[str, str] = {}
    retry_after_s = error.retry_after_s
    if retry_after_s is None and answer.retry and answer.status in (429, 503):
        retry_after_s = _RETRY_S
    if retry_after_s is not None:
        headers |= after(retry_after_s)
    elif not answer.retry and (answer.status in (408, 409, 429) or answer.status >= 500):
        headers["x-should-retry"] = "false"
    if answer.status == 401:
        headers["www-authenticate"] = "Bearer"
    code = answer.code
    if error.reason is Reason.INVALID_ARGUMENT and OVER_CONTEXT.items() <= error.metadata.items():
        # Programs look for it, to cut their prompt and come again.
        code = "context_length_exceeded"
    return HttpError(answer.status, message, type=answer.type, param=param, code=code, headers=headers)


def of_worker(error: WorkerStatusError, fields: Mapping[str, str] | None = None) -> HttpError:
    """The status with which a worker ended a call, as HTTP tells it."""
    told = told_by(error.error)
    if told is None:
        code, text = error.error.code(), error.error.details() or ""
        told = ChironError(_BY_STATUS.get(code, Reason.INTERNAL), text or code.name)
    return of_chiron(told, fields)


def after(seconds: float) -> dict[str, str]:
    """The headers that tell when to come again: whole seconds, and what OpenAI's clients prefer."""
    return {
        "retry-after": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, math.ceil(seconds * 1000))),
    }


def renamed(field: str, fields: Mapping[str, str]) -> str:
    """A field's name here."""
    for end in range(len(field), 0, -1):
        if (known := fields.get(field[:end])) is not None and field[end : end + 1] in ("", ".", "["):
            return (known + field[end:]).lstrip(".")
    return field
