"""On what terms a request is served."""

from __future__ import annotations

import math

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError
from chiron.v1 import cluster_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.admission import check_size, fit_context, settle_terms
from services.worker.engines.base import EngineInfo
from services.worker.model import engine_config, to_python

BATCH = types_pb2.REQUEST_CLASS_BATCH
SPEC = cluster_pb2.ModelSpec(
    name="toy",
    slo_defaults=cluster_pb2.SloDefaults(
        interactive=types_pb2.Slo(ttft_ms=500, itl_ms=50), batch=types_pb2.Slo(itl_ms=900)
    ),
)


def test_unset_slo_fields_take_the_models_defaults_for_the_class() -> None:
    assert settle_terms(pb.GenerateRequest(), None, SPEC).itl_slo_ms == 50
    assert settle_terms(pb.GenerateRequest(slo=types_pb2.Slo(ttft_ms=1)), None, SPEC).itl_slo_ms == 50
    assert settle_terms(pb.GenerateRequest(slo=types_pb2.Slo(itl_ms=7)), None, SPEC).itl_slo_ms == 7
    assert settle_terms(pb.GenerateRequest(request_class=BATCH), None, SPEC).itl_slo_ms == 900


def test_any_interactive_request_is_more_urgent_than_any_batch_request() -> None:
    least = settle_terms(pb.GenerateRequest(priority=1000), None, SPEC).engine_priority
    most = settle_terms(pb.GenerateRequest(priority=-1000, request_class=BATCH), None, SPEC).engine_priority
    assert least < most


def test_the_tickets_word_counts() -> None:
    ticket = worker_pb2.Ticket(request_class=BATCH, priority=5, slo=types_pb2.Slo(itl_ms=3), elapsed_ms=40)
    claims = pb.GenerateRequest(request_id="r", priority=-1000, slo=types_pb2.Slo(itl_ms=9999), elapsed_ms=10)
    terms = settle_terms(claims, ticket, SPEC)
    assert (terms.request_class, terms.itl_slo_ms, terms.elapsed_ms) == (BATCH, 3, 40)


def test_a_deadline_is_a_duration_from_now() -> None:
    own = settle_terms(pb.GenerateRequest(slo=types_pb2.Slo(deadline_s=60), elapsed_ms=15_000), None, SPEC)
    assert own.deadline_s == 45
    assert settle_terms(pb.GenerateRequest(), None, SPEC).deadline_s == math.inf
    # Of an item of the batch queue: its ticket's SLO has none, and it may be late.
    late = worker_pb2.Ticket(request_class=BATCH, deadline_in_s=-3.0)
    assert settle_terms(pb.GenerateRequest(), late, SPEC).deadline_s == -3


def test_a_tickets_slo_is_whole_whatever_the_worker_was_started_with() -> None:
    """An operator who takes a default away must not need new workers for it."""
    terms = settle_terms(pb.GenerateRequest(), worker_pb2.Ticket(slo=types_pb2.Slo(ttft_ms=1)), SPEC)
    assert terms.itl_slo_ms == 0


def test_a_request_without_id_gets_one_of_its_own() -> None:
    ids = {settle_terms(pb.GenerateRequest(), None, SPEC).request_id for _ in range(2)}
    assert len(ids) == 2
    assert "" not in ids


def test_max_tokens_defaults_to_the_rest_of_the_context() -> None:
    request = pb.GenerateRequest(prompt="x")
    assert fit_context(request, [1] * 30, 100).max_tokens == 70
    assert not request.sampling.HasField("max_tokens"), "the request itself is left as it came"


def test_whole_numbers_of_engine_arguments_are_integers() -> None:
    spec = cluster_pb2.ModelSpec(name="toy")
    spec.engine_args.update({"a": 3, "b": 0.5, "c": [1, {"d": 2.0}], "e": True, "f": "x", "g": None})
    arguments = to_python(spec.engine_args)
    assert arguments == {"a": 3, "b": 0.5, "c": [1, {"d": 2}], "e": True, "f": "x", "g": None}
    assert type(arguments["a"]) is int
    assert type(arguments["e"]) is bool


def test_the_batch_size_starts_at_the_ceiling_unless_the_spec_says_otherwise() -> None:
    assert engine_config(cluster_pb2.ModelSpec(name="m"), "i").batch_size == 256
    config = engine_config(cluster_pb2.ModelSpec(name="m", max_batch_size=8, initial_batch_size=2), "i")
    assert (config.max_batch_size, config.batch_size) == (8, 2)


INFO = EngineInfo(
    max_context_tokens=100,
    kv_capacity_tokens=1000,
    max_batch_size=8,
    max_step_token_budget=512,
    vocabulary_size=1000,
)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(prompt="x" * 25_601), "prompt"),
        (pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(content="x" * 12_801)] * 2)), "chat"),
        (pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[1] * 101)), "prompt_token_ids"),
        (
            pb.GenerateRequest(prompt="x", resume=pb.ResumeState(delivered_token_ids=[1] * 101)),
            "resume.delivered_token_ids",
        ),
    ],
)
def test_what_cannot_fit_is_refused_unread(request_: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(ChironError, match="over the context of 100") as caught:
        check_size(request_, INFO)
    assert [name for name, _ in caught.value.violations] == [field]


def test_what_may_fit_is_read() -> None:
    for request in (
        pb.GenerateRequest(prompt="x" * 25_600),
        pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(content="x" * 12_800)] * 2)),
        pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[1] * 100)),
        pb.GenerateRequest(prompt="x", resume=pb.ResumeState(delivered_token_ids=[1] * 100)),
    ):
        check_size(request, INFO)
