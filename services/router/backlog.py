"""The batch requests that wait in a router, in groups of similar deadlines, for its report. Pure."""

from __future__ import annotations

import math

from chiron.internal.v1 import control_pb2
from chiron.policy.groups import GroupedRequest, RequestGroups
from services.router.request import PendingRequest


class Backlog:
    """The groups, kept as requests come and leave, so that a report only reads them.

    Adding and removing cost O(log n) for n requests that wait, amortised; reading, O(cells) of RequestGroups.
    """

    def __init__(self) -> None:
        self._groups = RequestGroups()
        self._endless = 0
        self._endless_tokens = 0

    def add(self, request: PendingRequest) -> None:
        """A request begins to wait; its deadline and its tokens stay as they are meanwhile."""
        if request.deadline is None or not math.isfinite(request.deadline):
            self._endless += 1
            self._endless_tokens += request.prompt_tokens
        else:
            self._groups.add(
                GroupedRequest(request, request.deadline, request.arrived, request.prompt_tokens)
            )

    def remove(self, request: PendingRequest) -> None:
        """A request that waits leaves."""
        if request in self._groups:
            self._groups.remove(request)
        else:
            self._endless -= 1
            self._endless_tokens -= request.prompt_tokens

    def groups(self, now: float) -> list[control_pb2.RequestGroup]:
        """The groups, the earliest deadline first and those without any last.

        `now` is monotonic, in seconds.
        """
        told = [
            control_pb2.RequestGroup(
                deadline_in_ms=1e3 * (group.earliest_deadline_s - now),
                requests=group.requests,
                prompt_tokens=group.prompt_tokens,
            )
            for group in self._groups.groups()
        ]
        if self._endless:
            told.append(control_pb2.RequestGroup(requests=self._endless, prompt_tokens=self._endless_tokens))
        return told
