"""What a model can spare at once for one of the same priority that waits for GPUs (reconstructed).

While nobody else wants its GPUs an instance stays for as long as makes its return worth the cost; while
another model's requests wait for them, holding it for nobody is the greater cost. Two cases:

- Nobody asks for anything, for as long as it takes to have an instance back (waking where it may sleep,
  loading otherwise): all may go. At worst that costs twice what knowing the future would, as with `sleeping`.
- Fewer instances carry the last load time's peak and today's arrivals: so many may go, without the time for
  which a removal must hold otherwise.
"""

from __future__ import annotations

import math

from chiron.policy.fleet.interactive import InteractiveNeed
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.snapshots import ModelFleet
from chiron.policy.words import Phase


def spare_instances(
    model: ModelFleet,
    supply: Supply,
    state: ModelState,
    need: InteractiveNeed,
    settings: ChironSettings,
    now_s: float,
) -> int:
    """How many interactive and mixed instances may go for a model that waits. O(1) but for an idle model.

    0 while capacity that was just added, or batch work, needs them.
    """
    number = len(supply.interactive)
    if not number or model.backlog or supply.running_batch:
        return 0
    if not supply.demand:
        wakes = all(each.can_sleep and each.phase is Phase.READY for each in supply.interactive)
        back_s = model.wake_time_s if wakes else model.load_time_s
        if now_s - state.asked_s >= back_s:
            return number
    each_per_s = need.numbers["requests_per_s_each"]
    rate = state.arrivals.rate(settings.confidence) if each_per_s else None
    if rate is None or supply.loading_interactive or now_s - state.last_added_s < 2 * model.load_time_s:
        return 0
    carried = need.numbers["target"] * (1 - settings.hysteresis)
    for_peak = math.ceil(state.peak_demand / (carried * supply.slots_each) - 1e-9)
    for_arrivals = math.ceil((rate.settled + rate.settled_error) / each_per_s - 1e-9)
    return max(0, number - max(1, for_peak, for_arrivals))
