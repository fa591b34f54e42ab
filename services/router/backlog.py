"""The batch requests that wait in a router, in groups of similar deadlines, for its report. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from chiron.internal.v1 import control_pb2
from chiron.policy.groups import GroupedRequest, RequestGroups
from services.router.request import PendingRequest


def batch_groups(waiting: Iterable[PendingRequest], now: float) -> list[control_pb2.RequestGroup]:
    """The groups, the earliest deadline first and those without any last; `now` is monotonic, in seconds.

    O(n log n) for n requests that wait, once per report: their number is bounded by the queue's limit, and
    they change far more often than they are reported.
    """
    groups = RequestGroups()
    endless = control_pb2.RequestGroup()
    for request in waiting:
        if request.deadline is None:
            endless.requests += 1
            endless.prompt_tokens += request.prompt_tokens
        else:
            groups.add(GroupedRequest(request, request.deadline, request.arrived, request.prompt_tokens))
    told = [
        control_pb2.RequestGroup(
            deadline_in_ms=1e3 * (group.earliest_deadline_s - now),
            requests=group.requests,
            prompt_tokens=group.prompt_tokens,
        )
        for group in groups.groups()
    ]
    return [*told, endless] if endless.requests else told
