"""Which workers and routers are worth a try, told by a clock of the test's own."""

from __future__ import annotations

import pytest

from chiron.client.reachability import RouterOrder, WorkerReachability, host_of

A1, A2, B1, C1 = "10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "10.0.0.3:1"


def test_a_worker_that_timed_out_is_avoided_for_the_memory_and_not_longer():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=100)
    assert workers.avoided(A1, now=159.9)
    assert not workers.avoided(A1, now=160)


def test_its_host_is_avoided_too():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=0)
    assert workers.avoided(A2, now=1)
    assert not workers.avoided(B1, now=1)


def test_a_host_whose_other_worker_has_answered_is_not_to_blame():
    workers = WorkerReachability(memory_s=60)
    workers.answered(A2)
    workers.timed_out(A1, now=0)
    assert workers.avoided(A1, now=1)
    assert not workers.avoided(A2, now=1)


def test_an_answer_clears_worker_and_host():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=0)
    workers.answered(A1)
    assert not workers.avoided(A1, now=1)
    assert not workers.avoided(A2, now=1)


def test_several_in_a_row_rest_lookaside_as_a_whole():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=0)
    assert not workers.lookaside_rests(now=1)
    workers.timed_out(B1, now=10)
    assert workers.lookaside_rests(now=69.9)
    assert workers.avoided(C1, now=11)
    assert not workers.lookaside_rests(now=70)


def test_the_same_worker_twice_is_not_several():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=0)
    workers.timed_out(A1, now=1)
    assert not workers.lookaside_rests(now=2)


def test_an_answer_between_breaks_the_row():
    workers = WorkerReachability(memory_s=60)
    workers.timed_out(A1, now=0)
    workers.answered(C1)
    workers.timed_out(B1, now=1)
    assert not workers.lookaside_rests(now=2)


def test_a_refusal_counts_towards_the_row_but_shuts_out_nobody_alone():
    workers = WorkerReachability(memory_s=60)
    workers.refused(A1, now=0)
    assert not workers.avoided(A1, now=0)
    workers.refused(B1, now=0)
    assert workers.lookaside_rests(now=1)


def test_routers_keep_the_order_given():
    assert RouterOrder([A1, B1, C1], avoid_s=10).order(now=0) == [A1, B1, C1]


def test_a_failed_router_comes_last_until_its_time_is_over():
    routers = RouterOrder([A1, B1, C1], avoid_s=10)
    routers.failed(A1, now=0)
    routers.failed(B1, now=5)
    assert routers.order(now=6) == [C1, A1, B1]
    assert routers.order(now=10) == [A1, C1, B1]
    assert routers.order(now=15) == [A1, B1, C1]


def test_a_router_that_answers_is_first_again():
    routers = RouterOrder([A1, B1], avoid_s=10)
    routers.failed(A1, now=0)
    routers.answered(A1)
    assert routers.order(now=1) == [A1, B1]


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:5", "10.0.0.1"), ("[::1]:5", "::1"), ("gpu-7.lan:5", "gpu-7.lan"), ("gpu-7", "gpu-7")],
)
def test_the_host_of_an_address(address, host):
    assert host_of(address) == host
