"""`llumnix`: load-aware dispatch and scaling on freeness.

After Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving" (OSDI 2024), sections 4.4.2
and 4.4.4, reconstructed: an instance's freeness is its free KV blocks, less what waiting requests demand,
over its running requests, that is, the steps for which its batch can go on. Requests go where freeness is
highest; the fleet grows while the average is below 10 and shrinks while it is above 60. Migration of running
requests is planned in `chiron.sim.baselines.migration`. Deadlines and SLOs play no part, nor do classes but
for the scheduling priority that `llumnix-priorities` gives them; batch size and step-token budget are static.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, Refusal, RefusalKind
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, RequestClass, Role

BLOCK_TOKENS = 16
"""vLLM's default KV block, in tokens."""
_UNKNOWN_PROMPT_TOKENS = 256.0
"""Mean prompt length assumed until requests have been seen."""


def freeness(free_blocks: float, waiting: float, running: float, prompt_tokens: float) -> float:
    """Free KV blocks less the prompts of those that wait, over the requests that run (at least 1).

    It is in decode steps of the whole batch times 1/16, and negative when more waits than fits.
    """
    demand = waiting * math.ceil(prompt_tokens / BLOCK_TOKENS)
    return (free_blocks - demand) / max(1.0, running)


class FreenessDispatcher:
    """Sends a request to the instance with the highest freeness, of any role."""

    def __init__(self) -> None:
        self._seen = 0
        self._prompt_tokens = _UNKNOWN_PROMPT_TOKENS

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """See `Dispatcher.pick`. What waits is taken to need the mean of the prompts seen so far."""
        blocks_each = self.blocks_each(request.prompt_tokens)
        if not instances:
            return Refusal(RefusalKind.NO_INSTANCE, RefusalKind.NO_INSTANCE.value)
        kind = RefusalKind.EXCLUDED
        wrong = Role.BATCH if request.request_class is RequestClass.INTERACTIVE else Role.INTERACTIVE
        excluded = request.excluded
        scores: dict[str, float] = {}
        best: tuple[float, str] | None = None
        # As freeness() does, for every instance and request.
        for view in instances:
            name = view.instance_id
            if excluded and name in excluded:
                continue
            if view.role is wrong:
                kind = kind if kind is RefusalKind.FULL else RefusalKind.NO_ROLE
                continue
            running, batch_size = view.running, view.batch_size
            waiting = view.waiting_interactive + view.waiting_batch + view.reserved
            beyond = running + waiting - batch_size
            if beyond >= view.queue_allowance:
                kind = RefusalKind.FULL
                continue
            key = (waiting * blocks_each - view.kv_free_tokens / BLOCK_TOKENS) / (running or 1), name
            if best is None or key < best:
                best = key
            scores[name] = (beyond + 1) * view.service_s / batch_size if beyond >= 0 else 0.0
        if best is None:
            return Refusal(kind, kind.value)
        return Decision(best[1], f"highest freeness: {-best[0]:.1f}", scores)

    def blocks_each(self, prompt_tokens: int) -> int:
        """Take note of a prompt, 0 if its length is not known; return the KV blocks of the mean one."""
        if prompt_tokens:
            self._seen += 1
            self._prompt_tokens += (prompt_tokens - self._prompt_tokens) / self._seen
        return math.ceil(self._prompt_tokens / BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class FreenessThresholds:
    """When the fleet grows and shrinks. Raises ValueError by field."""

    out_below: float = 10.0
    in_above: float = 60.0
    interval_s: float = 10.0
    """From one action on a model to the next: time for it to show."""

    def __post_init__(self) -> None:
        if not self.out_below < self.in_above:
            raise ValueError(f"out_below: must be below in_above = {self.in_above:g}, not {self.out_below:g}")
        if not 0 <= self.interval_s < math.inf:
            raise ValueError(f"interval_s: must be a number >= 0, not {self.interval_s:g}")


class FreenessAutoscaler:
    """Adds or retires one mixed instance at a time by the average freeness of the ready ones.

    The average is of blocks over the average of running requests, not of each instance's quotient, which one
    idle instance would dominate. What waits in the routers, batch backlog included, demands as much as what
    waits in engines. Nothing is retired while an instance loads.
    """

    def __init__(self, thresholds: FreenessThresholds | None = None) -> None:
        self._thresholds = thresholds or FreenessThresholds()
        self._acted_s: dict[str, float] = {}
        self._prompts: dict[str, _MeanPrompt] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """One action per model at most."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            action, assessment = self._assess(model, snapshot.now_s)
            assessments.append(assessment)
            if action is not None:
                actions.append(action)
                self._acted_s[model.name] = snapshot.now_s
        return FleetDecision(tuple(actions), tuple(assessments))

    def _assess(self, model: ModelFleet, now_s: float) -> tuple[Action | None, ModelAssessment]:
        prompt_tokens = self._prompts.setdefault(model.name, _MeanPrompt()).after(model)
        ready = [each for each in model.instances if each.phase is Phase.READY]
        loading = sum(each.phase is Phase.LOADING for each in model.instances)
        held = len(ready) + loading
        numbers = {"ready": float(len(ready)), "loading": float(loading), "waiting": float(_waiting(model))}
        if held < model.min_instances or (not held and _waiting(model)):
            count = max(1, model.min_instances - held)
            reason = f"{held} instances, fewer than the least"
            start = Start(model.name, Role.MIXED, count, reason, numbers)
            return start, ModelAssessment(model.name, numbers, reason)
        if not ready:
            return None, ModelAssessment(model.name, numbers, "no instance is ready")
        average = average_freeness(model, ready, prompt_tokens)
        numbers["freeness"] = average
        limits = self._thresholds
        recent = now_s - self._acted_s.get(model.name, -math.inf) < limits.interval_s
        room = not model.max_instances or held < model.max_instances
        action: Action | None = None
        reason = f"average freeness {average:.1f} is within {limits.out_below:g} and {limits.in_above:g}"
        if average < limits.out_below:
            reason = f"average freeness {average:.1f} is below {limits.out_below:g}"
            if room and not recent:
                action = Start(model.name, Role.MIXED, 1, reason, numbers)
        elif average > limits.in_above:
            reason = f"average freeness {average:.1f} is above {limits.in_above:g}"
            if held > max(1, model.min_instances) and not loading and not recent:
                least = min(ready, key=lambda each: (_load(each), each.instance_id))
                action = Retire(model.name, least.instance_id, reason, numbers)
        return action, ModelAssessment(model.name, numbers, reason)


class _MeanPrompt:
    """Mean prompt length of the requests of a model that have ended."""

    def __init__(self) -> None:
        self._tokens = 0
        self._requests = 0

    def after(self, model: ModelFleet) -> float:
        """The mean in tokens, those of this snapshot included."""
        self._tokens += model.traffic.finished_prompt_tokens
        self._requests += model.traffic.finished_interactive + model.traffic.finished_batch
        return self._tokens / self._requests if self._requests else _UNKNOWN_PROMPT_TOKENS


def average_freeness(model: ModelFleet, ready: Sequence[FleetInstance], prompt_tokens: float) -> float:
    """Freeness of an average instance that is ready; `prompt_tokens` is what one that waits demands."""
    blocks = sum((1 - each.kv_usage) * each.kv_capacity_tokens / BLOCK_TOKENS for each in ready)
    running = sum(each.running_interactive + each.running_batch for each in ready)
    count = len(ready)
    return freeness(blocks / count, _waiting(model) / count, running / count, prompt_tokens)


def _waiting(model: ModelFleet) -> int:
    in_engines = sum(each.waiting_interactive + each.waiting_batch for each in model.instances)
    return in_engines + model.traffic.queued_interactive + sum(group.requests for group in model.backlog)


def _load(instance: FleetInstance) -> int:
    waiting = instance.waiting_interactive + instance.waiting_batch
    return instance.running_interactive + instance.running_batch + waiting
