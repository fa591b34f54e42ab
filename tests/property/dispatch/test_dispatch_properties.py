"""What holds of every decision, and of every run of the router's reservations and queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.dispatch import (
    MOST_WAITING,
    Decision,
    DispatchRequest,
    InstanceView,
    LeastExpectedWait,
    Refusal,
    RefusalKind,
)
from chiron.policy.words import RequestClass, Role
from services.router.queue import QueueFullError, WaitingQueue
from services.router.request import PendingRequest
from services.router.reservations import Reservation, Reservations

TAKES = {
    RequestClass.INTERACTIVE: {Role.INTERACTIVE, Role.MIXED},
    RequestClass.BATCH: {Role.BATCH, Role.MIXED},
}
small = st.integers(0, 6)
views = st.lists(
    st.builds(
        InstanceView,
        instance_id=st.sampled_from("abcdef"),
        role=st.sampled_from(Role),
        batch_size=st.integers(1, 6) | st.just(80),
        running=small,
        waiting_interactive=small | st.integers(MOST_WAITING - 6, MOST_WAITING + 1),
        waiting_batch=small,
        reserved=small,
        queue_allowance=st.integers(0, 3),
        kv_free_tokens=st.integers(0, 2000),
        itl_ms=st.floats(0, 100),
        service_s=st.floats(0.01, 100),
    ),
    max_size=6,
    unique_by=lambda view: view.instance_id,
)
requests = st.builds(
    DispatchRequest,
    request_class=st.sampled_from(RequestClass),
    prompt_tokens=st.integers(0, 2000),
    excluded=st.frozensets(st.sampled_from("abcdef")),
)


def has_room(view: InstanceView, request: DispatchRequest) -> bool:
    """Interactive requests pass waiting batch ones; batch requests never queue on a mixed instance.

    With slots free, only so many prompts wait to be computed.
    """
    if request.request_class is RequestClass.INTERACTIVE:
        coming = view.waiting_interactive + view.reserved
        if view.running + coming < view.batch_size:
            return coming < MOST_WAITING
        return view.running + coming < view.batch_size + view.queue_allowance
    total = view.running + view.waiting_interactive + view.waiting_batch + view.reserved
    return total < view.batch_size + (view.queue_allowance if view.role is Role.BATCH else 0)


@given(requests, views)
def test_a_pick_is_never_excluded_full_or_of_a_wrong_role(
    request: DispatchRequest, instances: list[InstanceView]
) -> None:
    able = {
        view.instance_id
        for view in instances
        if view.instance_id not in request.excluded
        and view.role in TAKES[request.request_class]
        and has_room(view, request)
    }
    found = LeastExpectedWait().pick(request, instances)
    if isinstance(found, Decision):
        assert found.instance_id in able
        assert set(found.scores) == able
    else:
        assert not able
        assert (found.kind is RefusalKind.NO_INSTANCE) == (not instances)


@given(requests, views)
def test_the_order_of_the_instances_does_not_matter(
    request: DispatchRequest, instances: list[InstanceView]
) -> None:
    forward = LeastExpectedWait().pick(request, instances)
    backward = LeastExpectedWait().pick(request, instances[::-1])
    if isinstance(forward, Refusal):
        assert forward == backward
    else:
        assert isinstance(backward, Decision)
        assert forward.instance_id == backward.instance_id


@given(requests, views)
def test_nobody_waits_while_a_slot_is_free(request: DispatchRequest, instances: list[InstanceView]) -> None:
    found = LeastExpectedWait().pick(request, instances)
    if isinstance(found, Decision) and min(found.scores.values()) == 0:
        assert found.scores[found.instance_id] == 0


TTL_S = 2.0
reservation_steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from("ab"), st.sampled_from("rstu")),
        st.tuples(st.just("confirm"), st.sampled_from("ab"), st.sampled_from("rstu")),
        st.tuples(st.just("release"), st.integers(0, 30), st.none()),
        st.tuples(st.just("pass"), st.floats(0, 3), st.none()),
        st.tuples(st.just("forget"), st.sampled_from("ab"), st.none()),
    ),
    max_size=40,
)


@given(reservation_steps)
def test_every_reservation_counts_until_it_ends_exactly_once(steps: list[tuple]) -> None:
    reservations, now = Reservations(TTL_S), 0.0
    made: list[Reservation] = []
    model: dict[tuple[str, str], float] = {}
    for kind, first, second in steps:
        if kind == "reserve":
            made.append(reservations.reserve(first, second, now))
            model[first, second] = now + TTL_S
        elif kind == "confirm":
            ended = reservations.confirm(first, [second])
            assert len(ended) == (model.pop((first, second), None) is not None)
        elif kind == "release" and made:
            reservation = made[first % len(made)]
            was_live = reservation.live
            assert reservations.release(reservation) is was_live
            if was_live:
                del model[reservation.instance_id, reservation.request_id]
        elif kind == "pass":
            now += first
            expired = {key for key, expires in model.items() if expires <= now}
            ended = reservations.expire(now)
            assert sorted((one.instance_id, one.request_id) for one in ended) == sorted(expired)
            for key in expired:
                del model[key]
        elif kind == "forget":
            reservations.forget(first)
            model = {key: expires for key, expires in model.items() if key[0] != first}
        for instance in "ab":
            assert reservations.count(instance) == sum(key[0] == instance for key in model)
        assert sum(reservation.live for reservation in made) == len(model)
        assert reservations.next_expiry == (min(model.values()) if model else None)


queue_steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(RequestClass), st.integers(-2, 2)),
        st.tuples(st.just("pop"), st.sampled_from(RequestClass), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 30), st.none()),
        st.tuples(st.just("return"), st.integers(0, 30), st.none()),
    ),
    max_size=60,
)
LIMIT = 5


@given(queue_steps)
def test_the_queue_is_ordered_and_bounded(steps: list[tuple]) -> None:
    queue = WaitingQueue(LIMIT, "fcfs")
    made: list[PendingRequest] = []
    waiting: list[PendingRequest] = []
    for kind, first, second in steps:
        if kind == "push":
            number = len(made) + 1
            deadline = None if number % 3 == 0 else 25.0 * number
            request = PendingRequest(
                "r", "m", first, 0.0, second, prompt_tokens=number, deadline=deadline, sequence=number
            )
            made.append(request)
            of_class = sum(other.request_class is first for other in waiting)
            try:
                queue.push(request)
            except QueueFullError:
                assert of_class >= LIMIT
            else:
                assert of_class < LIMIT
                waiting.append(request)
        elif kind == "pop":
            of_class = [request for request in waiting if request.request_class is first]
            expected = min(of_class, key=lambda r: (r.priority, r.sequence), default=None)
            assert queue.pop(first) is expected
            if expected is not None:
                waiting.remove(expected)
        elif made:
            request = made[first % len(made)]
            if kind == "remove":
                assert queue.remove(request) is (request in waiting)
                if request in waiting:
                    waiting.remove(request)
            elif request not in waiting:
                queue.push(request, readmit=True)
                waiting.append(request)
        assert len(queue) == len(waiting)
        batch = [request for request in waiting if request.request_class is RequestClass.BATCH]
        groups = queue.backlog.groups(0.0)
        assert sum(group.requests for group in groups) == len(batch)
        assert sum(group.prompt_tokens for group in groups) == sum(each.prompt_tokens for each in batch)
        dated = [group.deadline_in_ms for group in groups if group.HasField("deadline_in_ms")]
        assert dated[:1] == sorted(1e3 * each.deadline for each in batch if each.deadline is not None)[:1]
    assert queue.clear() == sorted(waiting, key=lambda r: (r.request_class, r.priority, r.sequence))
