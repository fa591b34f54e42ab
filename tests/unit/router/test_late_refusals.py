"""Who asks not to wait in vain is refused at once, with the estimate that says so."""

from __future__ import annotations

import math

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.waiting import WaitEstimate, WaitingTimeEstimator
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.request import Instruction, OpenWatch, PendingRequest, Refuse

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH
PRESUMED = 10.0
"""Output tokens per second of a slot of which nothing has been measured."""


class Rig:
    """A core with model `m` and one full instance of one slot."""

    def __init__(self, queue_limit: int = 10, **load: object) -> None:
        self.core = RouterCore(CoreSettings(queue_limit, 0, 1.0, 2.0), LeastExpectedWait())
        table = control_pb2.RoutingTable(
            epoch=1,
            term=1,
            models=[control_pb2.RoutedModel(name="m")],
            instances=[
                control_pb2.RoutedInstance(
                    instance_id="a",
                    incarnation=1,
                    model="m",
                    address="a:1",
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            ],
        )
        [watch] = self.core.snapshot(table, 0.0)
        assert isinstance(watch, OpenWatch)
        self._watch = watch.watch
        self.load(0.0, **load)

    def load(self, now: float, **fields: object) -> list[Instruction]:
        message = worker_pb2.WatchLoadResponse(
            **{
                "instance_id": "a",
                "incarnation": 1,
                "role": types_pb2.ROLE_MIXED,
                "state": types_pb2.INSTANCE_STATE_READY,
                "batch_size": 1,
                "running": types_pb2.ClassCounts(interactive=1),
                "batch_credits": 0,
                "batch_credit_ttl_ms": 60_000,
                **fields,
            }
        )
        return self.core.load("a", self._watch, message, now)

    def ask(self, name: str, now: float = 0.0, *, ttft_ms: float = 0, **fields: object) -> ChironError | None:
        """The refusal; None: it waits."""
        slo = types_pb2.Slo(ttft_ms=ttft_ms) if ttft_ms else types_pb2.Slo()
        values = {"request_class": INTERACTIVE, "refuse_if_late": True, "slo": slo, **fields}
        out = self.core.submit(PendingRequest(name, "m", arrived=now, **values), now)
        assert len(out) <= 1
        if not out:
            return None
        assert isinstance(out[0], Refuse)
        return out[0].error


def expected(ahead: int, kind: RequestClass = INTERACTIVE) -> WaitEstimate:
    """Behind so many interactive requests, at one slot's presumed speed."""
    return WaitingTimeEstimator().estimate({INTERACTIVE: ahead}, PRESUMED, request_class=kind)


def test_the_refusal_names_the_estimate_and_what_the_slo_leaves() -> None:
    rig = Rig()
    for name in ("1", "2", "3"):
        assert rig.ask(name, refuse_if_late=False) is None
    error = rig.ask("late", 2.0, ttft_ms=1500, elapsed_s=0.5)
    assert error is not None
    estimate = expected(3)
    assert error.reason is Reason.SLO_OUT_OF_REACH
    assert error.metadata == {
        "wait_mean_s": f"{estimate.mean_s:.3f}",
        "wait_quantile_s": f"{estimate.quantile_s:.3f}",
        "wait_quantile": "0.95",
        "requests_ahead": "3",
        "tokens_per_s": "10.0",
        "budget_s": "1.000",
    }
    assert estimate.mean_s == pytest.approx(3 * 256 / PRESUMED)
    assert error.retry_after_s == 60.0
    assert f"would wait {estimate.mean_s:.1f} s" in error.message
    assert rig.core.counts().waiting.interactive == 3, "it takes no place"


def test_the_quantile_decides_and_the_delay_is_what_is_too_much() -> None:
    limit_s = expected(1).quantile_s
    rig = Rig()
    assert rig.ask("first", refuse_if_late=False) is None
    error = rig.ask("late", ttft_ms=1e3 * (limit_s - 7.0))
    assert error is not None
    assert error.retry_after_s == pytest.approx(7.0)
    assert rig.ask("in time", ttft_ms=1e3 * (limit_s + 0.01)) is None


def test_nobody_else_is_refused() -> None:
    rig = Rig()
    assert rig.ask("1", refuse_if_late=False, ttft_ms=1) is None, "it has not asked"
    assert rig.ask("2") is None, "it has no SLO"
    resumed = PendingRequest(
        "3", "m", INTERACTIVE, 0.0, refuse_if_late=True, slo=types_pb2.Slo(ttft_ms=1), resumed_at=0.0
    )
    assert rig.core.submit(resumed, 0.0) == [], "its caller is in the midst of an answer"
    retried = PendingRequest(
        "4", "m", INTERACTIVE, 0.0, refuse_if_late=True, slo=types_pb2.Slo(ttft_ms=1), admitted=True
    )
    assert rig.core.submit(retried, 0.0) == [], "it was let in before"


def test_whoever_is_first_in_line_waits_if_a_slot_is_expected_in_time() -> None:
    tokens = WaitingTimeEstimator().lengths[INTERACTIVE].mean
    slot = WaitingTimeEstimator().estimate({}, PRESUMED, tokens, request_class=INTERACTIVE)
    assert slot.mean_s == expected(1).mean_s, "a slot comes free each time that one request's tokens are made"
    for_one_s = slot.quantile_s
    rig = Rig()
    assert rig.ask("first", ttft_ms=1e3 * (for_one_s + 0.01)) is None
    late = Rig().ask("late", ttft_ms=1e3 * (for_one_s - 0.01))
    assert late is not None, "the only slot is taken, and nothing says that it comes free at once"
    assert late.metadata["requests_ahead"] == "0"
    assert late.metadata["wait_mean_s"] == f"{expected(1).mean_s:.3f}"
    late = Rig().ask("late", ttft_ms=1000, elapsed_s=1.1)
    assert late is not None, "its time was up before it came"
    assert late.metadata["budget_s"] == "-0.100"


def test_only_those_count_that_go_before() -> None:
    rig = Rig()
    for name in ("1", "2", "3"):
        assert rig.ask(name, refuse_if_late=False) is None
    ttft_ms = 1e3 * expected(2).mean_s
    error = rig.ask("late", ttft_ms=ttft_ms, priority=1)
    assert error is not None
    assert error.metadata["requests_ahead"] == "3"
    assert rig.ask("urgent", ttft_ms=ttft_ms, priority=-1) is None


def test_a_batch_request_is_judged_by_its_deadline() -> None:
    rig = Rig()
    assert rig.ask("1", refuse_if_late=False) is None
    wait = expected(1, BATCH)
    assert rig.ask("in time", request_class=BATCH, deadline=wait.quantile_s + 1) is None
    error = rig.ask("late", request_class=BATCH, deadline=wait.quantile_s - 1)
    assert error is not None
    assert error.reason is Reason.SLO_OUT_OF_REACH
    assert rig.ask("endless", request_class=BATCH) is None


def test_while_nothing_serves_nobody_is_refused() -> None:
    rig = Rig(state=types_pb2.INSTANCE_STATE_DRAINING)
    assert rig.ask("1", ttft_ms=1) is None
    assert rig.ask("2", ttft_ms=1) is None


def test_an_instance_that_loads_is_capacity_from_when_it_is_expected() -> None:
    loading = types_pb2.INSTANCE_STATE_LOADING
    rig = Rig(state=loading, batch_size=8, running=types_pb2.ClassCounts())
    for name in ("1", "2", "3"):
        assert rig.ask(name, 10.0, refuse_if_late=False) is None
    error = rig.ask("late", 10.0, ttft_ms=1000)
    assert error is not None
    assert error.metadata["wait_mean_s"] == "20.000", "it loads for 30 s, and takes all of them in at once"
    assert error.metadata["tokens_per_s"] == "0.0"
    assert rig.ask("patient", 10.0, ttft_ms=120_000) is None
    first = Rig(state=loading, batch_size=8, running=types_pb2.ClassCounts())
    alone = first.ask("late", 10.0, ttft_ms=1000)
    assert alone is not None, "also for who is first in line"
    assert alone.metadata["wait_mean_s"] == "20.000"


def test_an_instance_that_wakes_is_capacity_within_the_time_of_a_wake() -> None:
    sleeping, loading = types_pb2.INSTANCE_STATE_SLEEPING, types_pb2.INSTANCE_STATE_LOADING
    nobody = types_pb2.ClassCounts()
    rig = Rig(state=sleeping, running=nobody)
    error = rig.ask("late", 1.0, ttft_ms=1000)
    assert error is not None
    assert error.metadata["wait_mean_s"] == "4.000", "a wake is presumed to take 5 s"
    assert rig.ask("in time", 1.0, ttft_ms=20_000) is None
    # Its engine fills the GPU again; that is no load.
    rig.load(3.0, state=loading, running=nobody)
    error = rig.ask("late", 3.0, ttft_ms=1000, priority=-1)
    assert error is not None
    assert error.metadata["wait_mean_s"] == "2.000"
    # Once it serves, it has taught how long the next one takes; loads take what they took.
    rig.load(4.0)
    for at, state, ready_in_s in ((10.0, sleeping, 4.0), (20.0, loading, 30.0)):
        rig.load(at, state=types_pb2.INSTANCE_STATE_DRAINING)
        rig.load(at, state=state, running=nobody)
        error = rig.ask("late", at, ttft_ms=1000, priority=-1)
        assert error is not None
        assert error.metadata["wait_mean_s"] == f"{ready_in_s:.3f}"


def test_the_first_instance_of_a_model_counts_before_it_has_told_its_batch_size() -> None:
    rig = Rig(state=types_pb2.INSTANCE_STATE_LOADING, batch_size=0, running=types_pb2.ClassCounts())
    for number in range(9):
        assert rig.ask(str(number), 10.0, ttft_ms=120_000) is None, "it takes all of them in at once"
    error = rig.ask("late", 10.0, ttft_ms=1000)
    assert error is not None
    assert error.metadata["wait_mean_s"] == "20.000"


def test_a_full_queue_says_how_long_the_wait_would_have_been() -> None:
    rig = Rig(queue_limit=2)
    for name in ("1", "2"):
        assert rig.ask(name, refuse_if_late=False) is None
    error = rig.ask("3", refuse_if_late=False)
    assert error is not None
    assert error.reason is Reason.QUEUE_FULL
    assert error.metadata["wait_mean_s"] == f"{expected(2).mean_s:.3f}"
    assert error.metadata["requests_ahead"] == "2"
    assert "budget_s" not in error.metadata
    drains = Rig(queue_limit=0, state=types_pb2.INSTANCE_STATE_DRAINING)
    none = drains.ask("1", refuse_if_late=False)
    assert none is not None
    assert (none.reason, none.metadata) == (Reason.QUEUE_FULL, {}), "nothing is known of the wait"


def test_what_waits_and_how_long_is_told() -> None:
    rig = Rig()
    assert rig.core.waits(0.0) == []
    for name in ("1", "2"):
        assert rig.ask(name, refuse_if_late=False) is None
    [told] = rig.core.waits(0.0)
    assert (told.model, told.waiting.interactive, told.waiting.batch) == ("m", 2, 0)
    assert told.interactive.ahead == told.batch.ahead == 2
    assert told.interactive.mean_ms == pytest.approx(1e3 * expected(2).mean_s)
    assert told.interactive.quantile_ms == pytest.approx(1e3 * expected(2).quantile_s)
    assert math.isclose(told.interactive.tokens_per_s, PRESUMED)
