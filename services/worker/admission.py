"""Whether a worker takes a request, and as what. Every refusal comes before the first token."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.internal.v1 import worker_pb2
from chiron.requests.priority import engine_priority
from chiron.requests.validation import check_generate
from chiron.rpc.errors import OVER_CONTEXT, ChironError, Reason
from chiron.v1 import cluster_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, EngineInfo
from services.worker.model import default_slo
from services.worker.promises import Promise

_MOST_CHARACTERS = 256
"""Of one token: the longest of today's tokenizers is a run of half as many spaces."""
_REFUSED_CLASS = {
    types_pb2.ROLE_INTERACTIVE: types_pb2.REQUEST_CLASS_BATCH,
    types_pb2.ROLE_BATCH: types_pb2.REQUEST_CLASS_INTERACTIVE,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request is served as, the ticket's word taken over its own."""

    request_id: str
    request_class: types_pb2.RequestClass.ValueType
    engine_priority: int
    itl_slo_ms: float
    elapsed_ms: float
    deadline_s: float
    """Time from now until the whole result is wanted, in seconds; infinite: no deadline."""
    tenant: str
    promise: Promise
    most_output_tokens: int
    """Of each choice; 0: as many as the context has room for."""


def check_request(request: pb.GenerateRequest) -> None:
    """Raises ChironError (INVALID_ARGUMENT) that names every bad field."""
    violations = check_generate(request)
    if violations:
        raise ChironError.invalid(violations)


def check_size(request: pb.GenerateRequest, info: EngineInfo) -> None:
    """Raises ChironError (INVALID_ARGUMENT) for input that is over the context, before anybody reads it.

    Going through millions of token ids takes seconds, in which this worker would serve nobody; reading a text
    of megabytes takes minutes, in which it reads no other long one.
    """
    most = info.max_context_tokens
    prompt, delivered = len(request.prompt_token_ids.ids), len(request.resume.delivered_token_ids)
    for field, count in (("prompt_token_ids", prompt), ("resume.delivered_token_ids", delivered)):
        if count > most:
            raise ChironError.invalid(
                [(field, f"{count} tokens are over the context of {most}")], OVER_CONTEXT
            )
    texts = [request.prompt, *(message.content for message in request.chat.messages)]
    length = sum(map(len, texts))
    if length > most * _MOST_CHARACTERS:
        what = f"{length} characters are over the context of {most} tokens, however they are split"
        raise ChironError.invalid([(str(request.WhichOneof("input")), what)], OVER_CONTEXT)


def check_resume(request: pb.GenerateRequest, engine: Engine) -> None:
    """Raises ChironError (CANNOT_RESUME, INVALID_ARGUMENT) when the engine cannot go on as it should."""
    delivered = request.resume.delivered_token_ids
    if not delivered:
        return
    obstacle = engine.resume_obstacle(request.sampling)
    if obstacle:
        text = f"the stream broke after {len(delivered)} tokens and cannot be resumed: {obstacle}"
        raise ChironError(Reason.CANNOT_RESUME, text)
    size, largest = engine.info.vocabulary_size, max(delivered)
    if largest >= size:
        raise ChironError.invalid(
            [("resume.delivered_token_ids", f"{largest} is outside the vocabulary of {size} tokens")]
        )


def settle_terms(
    request: pb.GenerateRequest, ticket: worker_pb2.Ticket | None, spec: cluster_pb2.ModelSpec
) -> Terms:
    """Class, priority and SLO from the ticket; without one from the request, the rest from the spec.

    A ticket's SLO is whole: its router has the model's present defaults, the worker those of its start.
    """
    source = request if ticket is None else ticket
    batch = source.request_class == types_pb2.REQUEST_CLASS_BATCH
    slo = types_pb2.Slo()
    if ticket is None:
        slo.CopyFrom(default_slo(spec, batch))
    slo.MergeFrom(source.slo)
    request_class = types_pb2.REQUEST_CLASS_BATCH if batch else types_pb2.REQUEST_CLASS_INTERACTIVE
    elapsed_ms = max(request.elapsed_ms, ticket.elapsed_ms if ticket else 0.0)
    return Terms(
        request_id=request.request_id or uuid.uuid4().hex,
        request_class=request_class,
        engine_priority=engine_priority(request_class, source.priority),
        itl_slo_ms=slo.itl_ms,
        elapsed_ms=elapsed_ms,
        deadline_s=_deadline_s(slo, ticket, elapsed_ms),
        tenant=ticket.tenant if ticket else "",
        # What came out of the durable queue has a deadline of its batch's, and none on its ticket.
        promise=Promise.of(slo, (slo if ticket is None else ticket.slo).deadline_s, batch=batch),
        most_output_tokens=ticket.max_tokens if ticket else 0,
    )


def _deadline_s(slo: types_pb2.Slo, ticket: worker_pb2.Ticket | None, elapsed_ms: float) -> float:
    """Time from now until the whole result is wanted, in seconds."""
    if ticket is not None and ticket.HasField("deadline_in_s"):
        return ticket.deadline_in_s
    return slo.deadline_s - elapsed_ms / 1000 if slo.deadline_s > 0 else math.inf


def check_target(request: pb.GenerateRequest, spec: cluster_pb2.ModelSpec) -> None:
    """Raises ChironError when the model or the adapter is not this worker's, naming what there is."""
    if request.model != spec.name:
        raise ChironError(
            Reason.MODEL_NOT_FOUND, f"model {request.model!r}: this worker serves {spec.name!r}"
        )
    known = [adapter.name for adapter in spec.adapters]
    if request.adapter and request.adapter not in known:
        there = ", ".join(known) or "none"
        raise ChironError(Reason.ADAPTER_NOT_FOUND, f"adapter {request.adapter!r}: {spec.name} has {there}")


def check_role(role: types_pb2.Role.ValueType, request_class: types_pb2.RequestClass.ValueType) -> None:
    """Raises ChironError (RETRY_ELSEWHERE) when the role does not take the class."""
    if _REFUSED_CLASS.get(role) == request_class:
        raise ChironError(
            Reason.RETRY_ELSEWHERE,
            f"this worker's role is {types_pb2.Role.Name(role)}: it does not take "
            f"{types_pb2.RequestClass.Name(request_class)}",
        )


def fit_context(
    request: pb.GenerateRequest, prompt: Sequence[int], most_tokens: int, most_output_tokens: int = 0
) -> pb.SamplingParams:
    """The request's sampling with max_tokens set. Raises ChironError naming both lengths over the context.

    Args:
        request: what came.
        prompt: its tokens.
        most_tokens: what the context holds.
        most_output_tokens: what the ticket allows; 0: no limit.
    """
    sampling = pb.SamplingParams()
    sampling.CopyFrom(request.sampling)
    asked = sampling.max_tokens if sampling.HasField("max_tokens") else max(1, sampling.min_tokens)
    if len(prompt) + asked > most_tokens:
        alone = len(prompt) + 1 > most_tokens
        field = str(request.WhichOneof("input")) if alone else "sampling.max_tokens"
        if not alone and not sampling.HasField("max_tokens"):
            field = "sampling.min_tokens"
        asked_for = f"{len(prompt)} prompt tokens and {asked} output tokens"
        what = f"{asked_for} are over the context of {most_tokens}"
        raise ChironError.invalid([(field, what)], OVER_CONTEXT)
    if not sampling.HasField("max_tokens"):
        room = most_tokens - len(prompt)
        sampling.max_tokens = min(room, most_output_tokens) if most_output_tokens else room
    return sampling
