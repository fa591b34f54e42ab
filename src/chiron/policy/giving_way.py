"""Interactive requests see the slots that batch work would give up: any dispatcher, asked twice. Pure.

The router promises such a slot, and the worker there frees it when the request arrives
(`chiron.policy.preemption`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chiron.policy.dispatch import Decision, Dispatcher, DispatchRequest, InstanceView, Refusal
from chiron.policy.words import RequestClass

REASON = "no slot is free; batch work gives way"
"""How the reason of a decision begins that counts on it."""


class GivingWay:
    """Lets an interactive request have a batch request's slot where otherwise it would wait or be refused.

    The dispatcher first sees all that runs. Only where that leaves no slot free, anywhere, does it see the
    instances without the batch requests that would yield: free slots come first, then those of batch work,
    then the queues of engines. Batch requests are placed by the first look alone.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Asks `dispatcher`, whichever it is."""
        self._dispatcher = dispatcher
        # Views are made anew only after a change, and so are these.
        self._without: dict[str, tuple[InstanceView, InstanceView]] = {}

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """See `Dispatcher.pick`."""
        found = self._dispatcher.pick(request, instances)
        if request.request_class is not RequestClass.INTERACTIVE or not waits(found):
            return found
        if not any(view.yielding for view in instances):
            return found
        second = self._dispatcher.pick(request, self._without_batch(instances))
        if not isinstance(second, Decision):
            return found
        if waits(second):
            return second
        return replace(second, reason=f"{REASON}: {second.reason}")

    def _without_batch(self, instances: Sequence[InstanceView]) -> list[InstanceView]:
        known = self._without
        if len(known) > 2 * len(instances) + 16:
            # Instances that are gone.
            known.clear()
        seen = []
        for view in instances:
            if view.yielding:
                kept = known.get(view.instance_id)
                if kept is None or kept[0] is not view:
                    running = max(0, view.running - view.yielding)
                    kept = known[view.instance_id] = view, replace(view, running=running, yielding=0)
                view = kept[1]
            seen.append(view)
        return seen


def waits(found: Decision | Refusal) -> bool:
    """Whether a request is expected to wait for a slot where it is sent, or is not sent at all."""
    return not isinstance(found, Decision) or found.scores.get(found.instance_id, 0.0) > 0
