"""What the agent makes of a worker's statistics: samples for its autoscaler, figures for the controller."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.policy.snapshots import InstanceSample
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.ages import Ages
from services.local_agent.condition import Have, Heard, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.samples import sample_of
from services.local_agent.status import status_of

LOADING, READY = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY


def statistics(**changes: object) -> worker_pb2.WatchStatisticsResponse:
    """Statistics in which every figure differs from every other."""
    message = worker_pb2.WatchStatisticsResponse(
        interval_ms=2000,
        steps=31,
        output_tokens=32,
        prompt_tokens=133,
        cached_prompt_tokens=100,
        tightest_itl_slo_ms=34,
        saturated=True,
        max_batch_size=35,
        max_step_token_budget=36,
        preemptions=37,
        draft_tokens=38,
        accepted_tokens=39,
        load=cluster_pb2.InstanceLoad(
            batch_size=11,
            step_token_budget=12,
            running=types_pb2.ClassCounts(interactive=13, batch=14),
            waiting=types_pb2.ClassCounts(interactive=15, batch=16),
            kv_usage=0.17,
            itl_mean_ms=18,
            itl_p95_ms=19,
            preemptions=999,
            kv_capacity_tokens=20,
        ),
    )
    message.MergeFrom(worker_pb2.WatchStatisticsResponse(**changes))  # type: ignore[arg-type]
    return message


def test_a_sample_holds_every_figure_in_the_policies_units() -> None:
    assert sample_of(statistics()) == InstanceSample(
        interval_s=2.0,
        batch_size=11,
        max_batch_size=35,
        step_token_budget=12,
        max_step_token_budget=36,
        running_interactive=13,
        running_batch=14,
        waiting_interactive=15,
        waiting_batch=16,
        steps=31,
        output_tokens=32,
        prompt_tokens=33,
        itl_mean_s=pytest.approx(0.018),
        itl_p95_s=pytest.approx(0.019),
        itl_slo_s=pytest.approx(0.034),
        kv_usage=0.17,
        kv_capacity_tokens=20,
        preemptions=37,
        saturated=True,
        draft_tokens=38,
        accepted_tokens=39,
    )


def test_a_message_that_covers_no_time_is_no_sample() -> None:
    first = statistics()
    first.interval_ms = 0
    assert sample_of(first) is None


def test_a_worker_without_an_engine_gives_no_sample() -> None:
    loading = statistics()
    loading.load.batch_size = 0
    assert sample_of(loading) is None


def test_the_age_of_a_state_is_counted_from_its_first_moment() -> None:
    ages, status = Ages(), cluster_pb2.InstanceStatus(state=LOADING)
    ages.note(LOADING, 10.0)
    ages.note(LOADING, 11.0)
    ages.fill(status, Heard(), 12.5)
    assert status.state_age_ms == 2500
    status.state = READY
    ages.fill(status, Heard(), 13.0)
    assert status.state_age_ms == 0


def test_the_age_of_a_load_is_counted_from_when_the_worker_told_it() -> None:
    ages, status = Ages(), cluster_pb2.InstanceStatus(state=READY)
    ages.fill(status, Heard(), 50.0)
    assert status.load_age_ms == 0, "there is no load"
    status.load.batch_size = 1
    ages.fill(status, Heard(load_at=49.0), 50.0)
    assert status.load_age_ms == 1000


def test_the_batch_size_in_force_counts_as_safe_while_nobody_judges() -> None:
    want = Want("toy-1", Goal.RUNNING, cluster_pb2.ModelSpec(name="toy", engine="sim"))
    heard = Heard(READY, load=cluster_pb2.InstanceLoad(batch_size=24))
    status = status_of(want, Have(process=Process.ALIVE, heard=heard), "node")
    assert (status.load.batch_size, status.load.safe_batch_size) == (24, 24)
    assert heard.load is not None
    assert heard.load.safe_batch_size == 0, "what was heard stays as it was"


def test_a_worker_that_has_failed_tells_no_load_and_none_is_made_up() -> None:
    failed = worker_pb2.WatchStatisticsResponse(state=types_pb2.INSTANCE_STATE_FAILED, reason="no memory")
    heard = Heard.of(failed, 7.0)
    assert heard == Heard(types_pb2.INSTANCE_STATE_FAILED, "no memory", load_at=7.0)
    want = Want("toy-1", Goal.RUNNING, cluster_pb2.ModelSpec(name="toy", engine="sim"))
    assert not status_of(want, Have(process=Process.ALIVE, heard=heard), "node").HasField("load")
    assert Heard.of(statistics(), 8.0).load == statistics().load
