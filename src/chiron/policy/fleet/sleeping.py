"""Sleep in place of retirement where several models share GPUs, and the end of a sleep that serves nobody.

Reconstructed: the paper names multiplexing without a rule. A sleeper's GPUs may serve another model, and it
wakes in seconds where a start takes a load. While nobody else uses them its GPUs are paid for all the same,
so that it sleeps alone for as long as a load would have held them and no longer: at worst, waiting and then
loading anew costs twice what knowing the future would have. While its model wishes for instances it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chiron.policy.decisions import Alternative, Retire, Sleep
from chiron.policy.fleet.plan import Plan
from chiron.policy.fleet.weighed import retire_instead, sleep_instead
from chiron.policy.snapshots import ModelFleet
from chiron.policy.words import Phase


class Sleepers:
    """Remembers since when each sleeping instance has had its GPUs for itself."""

    def __init__(self) -> None:
        self._alone_since_s: dict[str, float] = {}

    def settle(self, plans: Sequence[Plan], now_s: float) -> list[Retire | Sleep]:
        """Return what retires and what sleeps instead, and end the sleep of those alone for too long."""
        actions: list[Retire | Sleep] = []
        before, self._alone_since_s = self._alone_since_s, {}
        for plan in plans:
            shared = any(other is not plan and _share_gpus(plan, other) for other in plans)
            able = {i.instance_id for i in plan.model.instances if i.can_sleep and i.phase is Phase.READY}
            for action in plan.retire:
                if shared and action.instance_id in able:
                    reason = f"{action.reason}; it sleeps: another model may use its GPUs meanwhile"
                    weighed = (retire_instead(plan.model), *action.alternatives)
                    actions.append(
                        Sleep(
                            action.model,
                            action.instance_id,
                            reason,
                            action.numbers,
                            weighed,
                            action.hand_over,
                        )
                    )
                else:
                    weighed = (*action.alternatives, sleep_instead(shared=shared))
                    actions.append(replace(action, alternatives=weighed))
            if plan.wishes:
                # Demand asks for instances: those that sleep are its shortest way to further ones.
                continue
            for instance in plan.supply.sleeping:
                if not instance.can_wake:
                    continue
                since_s = before.get(instance.instance_id, now_s)
                self._alone_since_s[instance.instance_id] = since_s
                if now_s - since_s >= plan.model.load_time_s:
                    reason = f"nobody has used its GPUs for {now_s - since_s:.0f} s of its sleep"
                    actions.append(
                        Retire(
                            plan.model.name,
                            instance.instance_id,
                            reason,
                            plan.numbers,
                            (_sleep_on(now_s - since_s, plan.model),),
                        )
                    )
        return actions


def _sleep_on(alone_s: float, model: ModelFleet) -> Alternative:
    why = (
        f"its GPUs have been held for {alone_s:.0f} s for nobody, and a load takes {model.load_time_s:.0f} s"
    )
    numbers = {"alone_s": alone_s, "load_time_s": model.load_time_s}
    return Alternative("let it sleep on", why, numbers)


def _share_gpus(one: Plan, other: Plan) -> bool:
    types = {one.model.gpu_type, other.model.gpu_type}
    return len(types) == 1 or "" in types
