"""What may go at once when arrivals ebb away and streams can be handed over (reconstructed).

Without hand-over an instance that goes is paid for until its last stream has ended, whenever it is told, so
that waiting to be sure costs little. With it an instance is gone within seconds, and each second of waiting
is an instance's second. What is sure then is this: where fewer instances serve more than can still be
arriving, demand only falls from what it is now, and those that hold it now hold it later.
"""

from __future__ import annotations

import math

from chiron.policy.decisions import Alternative
from chiron.policy.fleet.arrivals import ArrivalRate
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.supply import Supply

_FULL = 0.7
"""Share of what the rest may carry that is in demand: more would leave what comes over no room, and has to be
computed anew sooner than it must."""
_EBB = 0.5
"""Share of what usually arrives, and of what the instances serve, that arrivals must surely have fallen
below: lesser changes, and fleets that have been too large all along, can wait until that is known to last."""


def ebbing(
    supply: Supply, rate: ArrivalRate, target: float, requests_each: float, settings: ChironSettings
) -> tuple[int, tuple[Alternative, ...]]:
    """How many of the instances that serve may go, and why not one more.

    Args:
        supply: what serves, with the streams that leave it.
        rate: of arrivals.
        target: share of the slots that may be in demand: Θ, and what may stand in the queue.
        requests_each: requests per second that one instance serves.
        settings: of the autoscaler.
    """
    number = len(supply.interactive)
    demand = supply.demand + supply.leaving
    if rate.falling > _EBB * min(rate.usual, number * requests_each):
        return 0, ()
    calm = 1 - settings.hysteresis
    for_demand = math.ceil(demand / (target * _FULL * supply.slots_each) - 1e-9)
    for_arrivals = math.ceil(max(0.0, rate.falling) / (calm * requests_each) - 1e-9)
    most = max(1, int(number * settings.retire_share))
    surplus = max(0, min(number - max(1, for_demand, for_arrivals), most))
    if not surplus:
        return 0, ()
    numbers = {"demand": float(demand), "arrivals_at_most": rate.falling, "for_demand": float(for_demand)}
    why = f"{for_demand} hold the {demand} requests, {for_arrivals} serve what can still be arriving"
    return surplus, (Alternative("retire one more", why, numbers),)
