"""What an estimate would have been, had the router known when instances come and go.

What an autoscaler decides later, and what fails, nobody can know when a request is queued. This reference
tells that share of an estimate's error from the rest; only benchmarks use it.
"""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.waiting import LaterCapacity, time_to_serve
from chiron.policy.words import RequestClass, Role
from chiron.sim.waits import FleetChange, WaitPair


def told_wait_s(pair: WaitPair, changes: Sequence[FleetChange]) -> float:
    """The mean of the estimate with the fleet as it came; its lengths, rates and arrivals stay as estimated.

    changes: of the whole run, in the order of time. An instance that the router did not know then makes what
    those that it knew made on average. In seconds; inf where those that serve never come to it, and the
    estimate itself where none served when it was made.
    """
    estimate, capacity = pair.estimate, pair.capacity
    if not estimate.tokens or not capacity.each:
        return estimate.mean_s
    other = Role.BATCH if estimate.request_class is RequestClass.INTERACTIVE else Role.INTERACTIVE
    usual = sum(capacity.each.values()) / len(capacity.each)
    serving = set(capacity.each)
    # Those that were loading are among the changes.
    later = [step for step in capacity.later if not step.slots]
    for change in changes:
        if change.at_s <= pair.at_s:
            continue
        key = change.instance_id
        rate = capacity.each.get(key, usual)
        serves = change.role is not None and change.role is not other
        if serves and key not in serving:
            serving.add(key)
            later.append(LaterCapacity(change.at_s - pair.at_s, rate, change.batch_size))
        elif not serves and key in serving:
            serving.remove(key)
            later.append(LaterCapacity(change.at_s - pair.at_s, -rate))
    later.sort(key=lambda step: step.in_s)
    tokens = estimate.tokens * estimate.ratio
    return time_to_serve(tokens, capacity.tokens_per_s, tokens / max(1, pair.ahead), later)
