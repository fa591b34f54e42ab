"""What a lookaside request holds of its tenant's quota, whatever becomes of its tickets and workers."""

from __future__ import annotations

import pytest

from chiron.auth.quotas import Account
from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError
from chiron.v1.access_pb2 import Quota
from services.router.holds import LookasideHolds

TTL_S = 2.0
TOKENS = 60


class Door:
    """A router's holds and one tenant's account, on a clock that the test holds."""

    def __init__(self, **quota: int) -> None:
        self.now = 0.0
        self.account = Account(Quota(**({"tokens_per_min": 100} | quota)), 0.0)
        self.holds = LookasideHolds()

    def route(self, request_id: str, instance_id: str = "a", tokens: int = TOKENS) -> None:
        """As the router does: lets the request in and hands out a ticket."""
        self.holds.expire(self.now)
        hold = self.holds.reclaim(self.account, request_id, tokens) or self.account.take(tokens, self.now)
        self.holds.hand_out(hold, instance_id, request_id, self.now + TTL_S)

    def heard(self, instance_id: str = "a", **ids: list[str]) -> None:
        """A report: `started`, `finished` and `interrupted` ids."""
        fields = {f"{what}_request_ids": names for what, names in ids.items()}
        self.holds.heard(worker_pb2.WatchLoadResponse(instance_id=instance_id, **fields), self.now)  # type: ignore[arg-type]

    def is_full(self, tokens: int = TOKENS) -> bool:
        """Whether another request of the tenant is refused."""
        try:
            self.account.take(tokens, self.now).undo()
        except ChironError:
            return True
        return False


@pytest.fixture
def door() -> Door:
    return Door(concurrent=1)


def test_who_was_refused_by_a_worker_goes_on_with_what_it_held(door: Door) -> None:
    door.route("r")
    door.route("r", "b")
    assert (door.account.running, door.is_full(0)) == (1, True)
    door.heard("b", started=["r"])
    door.heard("b", finished=["r"])
    assert (door.account.running, door.is_full(41)) == (0, True)


def test_the_earlier_ticket_counts_for_itself_when_it_is_used_all_the_same(door: Door) -> None:
    door.route("r")
    door.route("r", "b")
    door.heard("a", started=["r"])
    door.heard("b", started=["r"])
    assert door.account.running == 2
    door.heard("a", finished=["r"])
    door.heard("b", finished=["r"])
    assert door.account.running == 0
    door.now = 47.0
    assert door.is_full(TOKENS), "both were counted: 20 are owed, and 78 have come back"
    door.now = 49.0
    assert not door.is_full(TOKENS)


def test_one_hold_is_good_for_a_few_tickets(door: Door) -> None:
    for number in range(5):
        door.route("r", f"w-{number}")
    with pytest.raises(ChironError, match="as many as its quota allows"):
        door.route("r", "w-5")
    door.heard("w-4", started=["r"])
    door.heard("w-4", finished=["r"])
    door.now = 60.0
    door.route("r", "w-6")


def test_more_than_it_held_is_asked_for_anew(door: Door) -> None:
    door.route("r")
    with pytest.raises(ChironError, match="as many as its quota allows"):
        door.route("r", "b", TOKENS + 1)


def test_another_request_has_no_part_in_it(door: Door) -> None:
    door.route("r")
    with pytest.raises(ChironError, match="as many as its quota allows"):
        door.route("s")


def test_what_runs_is_not_given_up_by_asking_again(door: Door) -> None:
    door.route("r")
    door.heard(started=["r"])
    with pytest.raises(ChironError, match="as many as its quota allows"):
        door.route("r", "b")


def test_a_request_whose_worker_is_lost_goes_on_within_its_quota(door: Door) -> None:
    door.route("r")
    door.heard(started=["r"])
    door.holds.lost("a", door.now)
    assert not door.is_full()
    door.route("s")
    door.route("r", "b")
    assert door.account.running == 2, "it was let in before: what came meanwhile does not shut it out"


def test_a_request_that_its_worker_gave_up_goes_on_within_its_quota(door: Door) -> None:
    door.route("r")
    door.heard(started=["r"])
    door.heard(interrupted=["r"], finished=["r"])
    assert (door.account.running, door.is_full()) == (0, False)
    door.route("r", "b")
    assert (door.account.running, door.is_full(0)) == (1, True)


def test_a_request_that_has_ended_counts_anew(door: Door) -> None:
    door.route("r")
    door.heard(started=["r"])
    door.heard(finished=["r"])
    with pytest.raises(ChironError, match="100 tokens a minute"):
        door.route("r")


def test_a_worker_that_was_only_out_of_hearing_counts_its_requests_again(door: Door) -> None:
    door.route("r")
    door.heard(started=["r"])
    door.holds.lost("a", door.now)
    door.heard(started=["r"])
    assert (door.account.running, door.is_full(0)) == (1, True)
    door.heard(finished=["r"])
    assert door.account.running == 0


def test_an_unused_ticket_counts_for_nothing(door: Door) -> None:
    door.route("r")
    door.now = TTL_S
    door.holds.expire(door.now)
    assert (door.account.running, door.is_full()) == (0, False)


def test_a_ticket_used_in_its_last_moment_counts_although_its_worker_says_so_later(door: Door) -> None:
    door.route("r")
    door.now = TTL_S
    door.holds.expire(door.now)
    door.heard(started=["r"])
    assert (door.account.running, door.is_full(0)) == (1, True)
    door.now = 30.0
    door.holds.expire(door.now)
    assert door.account.running == 1
    door.heard(finished=["r"])
    assert door.account.running == 0


def test_nothing_is_kept_for_good(door: Door) -> None:
    for number in range(10):
        door.route(f"r-{number}")
        door.holds.lost("a", door.now) if number % 2 else door.heard(started=[f"r-{number}"])
        door.heard(finished=[f"r-{number}"])
        door.now += 100.0
    door.route("last")
    door.now += TTL_S
    door.holds.expire(door.now)
    assert len(door.holds) == 1
    door.now += 10.0
    door.holds.expire(door.now)
    assert len(door.holds) == 0
