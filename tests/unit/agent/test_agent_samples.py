"""Which samples an agent makes of messages that come at intervals and at once on a change."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.samples import Gatherer

READY = types_pb2.INSTANCE_STATE_READY


def message(
    interval_ms: float, *, batch_size: int = 8, state: int = READY, **fields: object
) -> worker_pb2.WatchStatisticsResponse:
    load = {"itl_mean_ms": 20.0, "itl_p95_ms": 30.0, **{k: fields.pop(k) for k in list(fields) if k in _LOAD}}
    return worker_pb2.WatchStatisticsResponse(
        interval_ms=interval_ms,
        state=state,  # type: ignore[arg-type]
        max_batch_size=64,
        max_step_token_budget=8192,
        load=cluster_pb2.InstanceLoad(batch_size=batch_size, step_token_budget=512, **load),  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


_LOAD = {"itl_mean_ms", "itl_p95_ms", "kv_usage"}


def test_a_whole_interval_is_a_sample_as_it_is() -> None:
    sample = Gatherer(1.0).add(message(1001, steps=50, output_tokens=400))
    assert sample is not None
    assert (sample.interval_s, sample.steps, sample.output_tokens) == (1.001, 50, 400)


def test_what_comes_early_is_counted_into_the_next_sample() -> None:
    gatherer = Gatherer(1.0)
    early = message(
        250,
        steps=10,
        output_tokens=100,
        prompt_tokens=30,
        draft_tokens=40,
        accepted_tokens=20,
        preemptions=1,
        saturated=True,
        itl_mean_ms=10.0,
    )
    assert gatherer.add(early) is None
    late = message(
        1000,
        steps=50,
        output_tokens=300,
        prompt_tokens=70,
        cached_prompt_tokens=20,
        draft_tokens=160,
        accepted_tokens=70,
        preemptions=2,
        saturated=True,
        itl_mean_ms=50.0,
        itl_p95_ms=15.0,
        kv_usage=0.5,
    )
    sample = gatherer.add(late)
    assert sample is not None
    assert (sample.interval_s, sample.steps, sample.output_tokens) == (1.25, 60, 400)
    assert (sample.prompt_tokens, sample.preemptions, sample.saturated) == (80, 3, True)
    assert (sample.draft_tokens, sample.accepted_tokens) == (200, 90)
    assert (sample.itl_mean_s, sample.itl_p95_s, sample.kv_usage) == (pytest.approx(0.04), 0.03, 0.5)
    again = gatherer.add(message(1000, steps=5))
    assert again is not None
    assert again.steps == 5, "nothing is counted twice"


@pytest.mark.parametrize(("early_ms", "expected"), [(50, True), (500, False)])
def test_an_interval_is_saturated_when_nearly_all_of_it_was(early_ms: float, expected: bool) -> None:
    gatherer = Gatherer(1.0)
    assert gatherer.add(message(early_ms, saturated=False)) is None
    sample = gatherer.add(message(1000, saturated=True))
    assert sample is not None
    assert sample.saturated is expected


def test_no_sample_mixes_two_pairs_of_limits() -> None:
    gatherer = Gatherer(1.0)
    assert gatherer.add(message(1000, batch_size=8, steps=1)) is not None
    assert gatherer.add(message(400, batch_size=8, steps=7)) is None
    assert gatherer.add(message(5, batch_size=16, steps=7)) is None, "made with the limits before"
    sample = gatherer.add(message(1000, batch_size=16, steps=50))
    assert sample is not None
    assert (sample.steps, sample.interval_s, sample.batch_size) == (50, 1.0, 16)
    assert gatherer.add(message(1000, batch_size=4)) is None, "even when it comes with the interval's end"
    assert gatherer.changes == 2


@pytest.mark.parametrize(
    "state",
    [
        types_pb2.INSTANCE_STATE_LOADING,
        types_pb2.INSTANCE_STATE_DRAINING,
        types_pb2.INSTANCE_STATE_SLEEPING,
        types_pb2.INSTANCE_STATE_FAILED,
    ],
)
def test_a_worker_that_does_not_serve_gives_no_sample_and_begins_anew(state: int) -> None:
    gatherer = Gatherer(1.0)
    assert gatherer.add(message(500, steps=7)) is None
    assert gatherer.add(message(1000, state=state)) is None
    assert gatherer.add(message(300, steps=5)) is None, "the half second before is forgotten"
    sample = gatherer.add(message(1000, steps=5))
    assert sample is not None
    assert sample.steps == 10


def test_the_first_message_of_a_stream_covers_no_time() -> None:
    gatherer = Gatherer(1.0)
    assert gatherer.add(message(0)) is None
    assert gatherer.add(message(1000)) is not None
