"""Which answers kept their SLO, as a worker counts them."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker.admission import settle_terms
from services.worker.engines.base import ChoiceDelta, EngineOutput
from services.worker.finished import Finished
from services.worker.meter import Meter
from services.worker.pace import Pace
from services.worker.promises import NO_PROMISE, Promise

STOP, ABORT = pb.FINISH_REASON_STOP, pb.FINISH_REASON_ABORT
BATCH = types_pb2.REQUEST_CLASS_BATCH
SPEC = cluster_pb2.ModelSpec(
    slo_defaults=cluster_pb2.SloDefaults(
        interactive=types_pb2.Slo(ttft_ms=500, itl_ms=50), batch=types_pb2.Slo(itl_ms=900, deadline_s=60)
    )
)


def pace(reason: pb.FinishReason.ValueType = STOP, resume: pb.ResumeState | None = None) -> Pace:
    """300 ms before it came, first token 200 ms later, then four more in 100 ms each."""
    made = Pace(Meter(), arrival=10.0, elapsed_ms=300.0, prompt_tokens=5, resume=resume)
    for index in range(5):
        end = reason if index == 4 else pb.FINISH_REASON_UNSPECIFIED
        made.add(EngineOutput([ChoiceDelta(0, [index], "", [], finish_reason=end)], 10.2 + 0.1 * index))
    return made


def counted(*promises: Promise, reason: pb.FinishReason.ValueType = STOP, batch: bool = False) -> list[int]:
    """Requests, those with an SLO, TTFT met, ITL met, SLO met, failed, left."""
    finished = Finished()
    for promise in promises:
        finished.add(pace(reason), batch=batch, promise=promise)
    return told(finished, batch=batch)


def told(finished: Finished, *, batch: bool = False) -> list[int]:
    load = cluster_pb2.InstanceLoad()
    finished.fill(load)
    sums = load.finished_batch if batch else load.finished_interactive
    return [
        sums.requests,
        sums.with_slo,
        sums.ttft_met,
        sums.itl_met,
        sums.slo_met,
        sums.slo_failed,
        sums.slo_left,
    ]


@pytest.mark.parametrize(
    ("promise", "expected"),
    [
        (NO_PROMISE, [1, 0, 0, 0, 0, 0, 0]),
        (Promise(ttft_ms=501, itl_ms=101), [1, 1, 1, 1, 1, 0, 0]),
        (Promise(ttft_ms=499, itl_ms=101), [1, 1, 0, 1, 0, 0, 0]),
        (Promise(ttft_ms=501, itl_ms=99), [1, 1, 1, 0, 0, 0, 0]),
        (Promise(ttft_ms=499, itl_ms=99), [1, 1, 0, 0, 0, 0, 0]),
        (Promise(ttft_ms=501), [1, 1, 1, 1, 1, 0, 0]),
        (Promise(itl_ms=99), [1, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_an_answer_keeps_its_slo_by_ttft_and_mean_itl(promise: Promise, expected: list[int]) -> None:
    assert counted(promise) == expected


def test_a_batch_answer_keeps_its_slo_by_its_deadline_from_the_first_door_on() -> None:
    # 300 ms before it came, 600 ms at the worker.
    in_time, late = Promise(batch=True, deadline_s=0.901), Promise(batch=True, deadline_s=0.899)
    assert counted(in_time, late, Promise(batch=True), batch=True) == [3, 2, 0, 0, 1, 0, 0]


def test_the_mean_itl_of_a_resumed_stream_spans_its_attempts() -> None:
    resume = pb.ResumeState(delivered_token_ids=[1, 2, 3], origin=pb.StreamOrigin(ttft_ms=40.0))
    resumed = pace(resume=resume)
    # 8 tokens, the first after 40 ms, the last after 300 + 600 ms.
    assert resumed.whole_itl_ms == pytest.approx((900 - 40) / 7)
    finished = Finished()
    finished.add(resumed, batch=False, promise=Promise(ttft_ms=50, itl_ms=110))
    assert told(finished) == [1, 1, 1, 0, 0, 0, 0], "the gap between the attempts counts"


def test_what_the_engine_gave_up_has_missed() -> None:
    assert counted(Promise(ttft_ms=9999), NO_PROMISE, reason=ABORT) == [0, 0, 0, 0, 0, 1, 0]
    late = Promise(batch=True, deadline_s=99)
    assert counted(late, reason=ABORT, batch=True) == [0, 0, 0, 0, 0, 1, 0]


def test_a_caller_that_leaves_counts_only_once_it_has_waited_too_long() -> None:
    finished = Finished()
    for promise, waited_ms in (
        (Promise(ttft_ms=100), 99.0),
        (Promise(ttft_ms=100), 101.0),
        (Promise(itl_ms=5), 1e6),
        (Promise(batch=True, deadline_s=1), 1e6),
        (NO_PROMISE, 1e6),
    ):
        finished.left(promise, waited_ms)
    assert told(finished) == [0, 0, 0, 0, 0, 0, 1]


def test_a_promise_is_the_settled_slo_of_the_class() -> None:
    own = types_pb2.Slo(itl_ms=7)
    assert settle_terms(pb.GenerateRequest(slo=own), None, SPEC).promise == Promise(ttft_ms=500, itl_ms=7)
    direct = pb.GenerateRequest(request_class=BATCH)
    assert settle_terms(direct, None, SPEC).promise == Promise(batch=True, deadline_s=60)


def test_a_batch_queues_item_has_no_deadline_of_its_own() -> None:
    """Its router leaves the deadline off the ticket, and the spec's default does not come back in."""
    claims = pb.GenerateRequest(request_class=BATCH, slo=types_pb2.Slo(deadline_s=5))
    ticket = worker_pb2.Ticket(request_class=BATCH, slo=types_pb2.Slo(itl_ms=900))
    assert not settle_terms(claims, ticket, SPEC).promise.given
    ticket.slo.deadline_s = 9
    assert settle_terms(claims, ticket, SPEC).promise.deadline_s == 9
