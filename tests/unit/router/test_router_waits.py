"""What a router measures and learns of waits."""

from __future__ import annotations

import random

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.policy.words import RequestClass, Role
from chiron.v1 import cluster_pb2, types_pb2
from services.router.health import EjectionSettings, Health
from services.router.instance import TrackedInstance
from services.router.request import PendingRequest
from services.router.waits import ModelWaits

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH
READY, LOADING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_LOADING


class World:
    """One instance of four slots; each answer has 100 tokens, and all slots together make 200 tokens/s."""

    def __init__(self) -> None:
        self.waits = ModelWaits()
        self.waits.ended = []
        health = EjectionSettings()
        self.instance = TrackedInstance("a", "m", "a:1", Role.MIXED, 1, lambda: Health(health, lambda: 1.0))
        self.done = worker_pb2.WorkDone()
        self.now = 0.0
        self.incarnation = 1

    def hear(self, after_s: float = 1.0, *, tokens: int = 200, ended: int = 2, **fields: object) -> None:
        """Time passes, and the instance tells what it has done in it."""
        self.now += after_s
        self.done.output_tokens += tokens
        sums = self.done.finished_interactive
        sums.MergeFrom(
            cluster_pb2.FinishedRequests(
                requests=sums.requests + ended,
                output_tokens=sums.output_tokens + 100 * ended,
                output_tokens_sq=sums.output_tokens_sq + 10_000 * ended,
                service_ms=sums.service_ms + 2_000 * ended,
                start_ms=sums.start_ms + 250 * ended,
            )
        )
        load = worker_pb2.WatchLoadResponse(
            **{
                "instance_id": "a",
                "incarnation": self.incarnation,
                "state": READY,
                "batch_size": 4,
                "running": types_pb2.ClassCounts(interactive=4),
                "clock_ms": 1e3 * self.now,
                "done": self.done,
                **fields,
            }
        )
        self.instance.take(load, self.now)
        self.waits.heard(self.instance, load, self.now)
        self.waits.sample({"a": self.instance}, 1, self.now)

    def wait(self, ahead: int, kind: RequestClass = INTERACTIVE):
        return self.waits.wait(kind, {INTERACTIVE: ahead}, {"a": self.instance}, self.now)


def request(name: str = "r", kind: RequestClass = INTERACTIVE, **fields: object) -> PendingRequest:
    return PendingRequest(name, "m", kind, **{"arrived": 0.0, **fields})


def test_throughput_and_lengths_come_from_what_workers_have_done() -> None:
    world = World()
    for _ in range(300):
        world.hear()
        world.waits.sent += 2
    wait = world.wait(20)
    assert wait.tokens_per_s == pytest.approx(200, rel=0.05)
    assert world.waits.estimator.lengths[INTERACTIVE].mean == pytest.approx(100, rel=0.1)
    assert wait.estimate.mean_s == pytest.approx(20 * 100 / 200, rel=0.15)
    budget_s = world.waits.budget_s(request(slo=types_pb2.Slo(ttft_ms=3_000), arrived=world.now), world.now)
    assert budget_s == pytest.approx(3.0 - 0.25), "the first token takes its time at the instance"
    batch_s = world.waits.budget_s(request(kind=BATCH, deadline=world.now + 60), world.now)
    assert batch_s == pytest.approx(60 - 2.0), "and a whole answer its own"


def test_what_an_earlier_incarnation_did_counts_for_nothing() -> None:
    world = World()
    world.hear()
    weight = world.waits.estimator.lengths[INTERACTIVE].weight
    world.incarnation, world.done = 2, worker_pb2.WorkDone()
    world.hear(tokens=5, ended=1)
    assert world.waits.estimator.lengths[INTERACTIVE].weight == weight


def test_how_long_loading_takes_is_learned() -> None:
    world = World()
    world.hear(0.0)
    world.hear(1.0, state=LOADING, running=types_pb2.ClassCounts())
    assert world.wait(4).estimate.mean_s == pytest.approx(30.0), "presumed"
    world.hear(7.0, state=READY)
    world.hear(1.0, state=LOADING, running=types_pb2.ClassCounts())
    world.now += 2.0
    assert world.wait(4).estimate.mean_s == pytest.approx(5.0), "7 s the last time, 2 s are over"
    world.now += 60.0
    assert world.wait(4).estimate.mean_s == pytest.approx(0.1), "one that is late comes at any moment"


def test_a_wait_that_is_over_is_compared_with_its_estimate() -> None:
    world = World()
    world.hear()
    one = request()
    world.waits.queued(one, world.wait(8), world.now)
    for _ in range(5):
        world.hear()
    world.waits.placed(one, world.now)
    assert world.waits.ended == [], "its request may come back"
    world.hear()
    world.hear()
    [ended] = world.waits.ended or []
    assert (ended.ahead, ended.actual_s) == (8, 5.0)


def test_one_that_comes_back_waits_still_and_one_that_leaves_teaches_nothing() -> None:
    world = World()
    world.hear()
    back, gone = request("back"), request("gone")
    for one in (back, gone):
        world.waits.queued(one, world.wait(8), world.now)
    world.hear()
    world.waits.placed(back, world.now)
    world.waits.returned(back)
    world.waits.left(gone)
    world.waits.placed(gone, world.now)
    for _ in range(4):
        world.hear()
    assert world.waits.ended == []
    world.waits.placed(back, world.now)
    world.hear(2.0)
    [ended] = world.waits.ended or []
    assert ended.actual_s == 5.0


def test_estimates_learn_from_waits_that_are_twice_as_long() -> None:
    world, draws = World(), random.Random(1)
    world.hear()
    for _ in range(3_000):
        one, wait = request(), world.wait(draws.randint(10, 60))
        world.waits.queued(one, wait, world.now)
        plain_s = wait.estimate.mean_s / wait.estimate.ratio
        world.waits.sent += round(4 * plain_s) - 1
        world.hear(2 * plain_s, tokens=round(400 * plain_s), ended=round(4 * plain_s))
        world.waits.placed(one, world.now)
    assert world.waits.estimator.errors[INTERACTIVE].ratio == pytest.approx(2.0, rel=0.1)


def test_few_estimates_are_kept() -> None:
    waits = ModelWaits()
    assert waits.wants(5.0)
    world = World()
    world.hear()
    waits.queued(request(), world.wait(1), 5.0)
    assert not waits.wants(5.05)
    assert waits.wants(5.2)
