"""Policies whose answers are checked where they enter: a mistake raises a PolicyError instead of doing harm.

Each class here stands in for the policy that it asks. A message names the policy's class, the time, instance
or request that it was asked about, the field and its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from chiron.policy.custom import FAILURES, PolicyError, class_name, failure, one_line
from chiron.policy.decisions import (
    Alternative,
    ChangeRole,
    FleetDecision,
    Limits,
    ModelAssessment,
    Retire,
    Sleep,
    Start,
    Wake,
)
from chiron.policy.dispatch import Decision, Dispatcher, DispatchRequest, InstanceView, Refusal, RefusalKind
from chiron.policy.fleet.protocol import GlobalAutoscaler
from chiron.policy.local.base import LocalAutoscaler
from chiron.policy.snapshots import FleetSnapshot, InstanceSample
from chiron.policy.words import RequestClass, Role

MOST_STARTS = 100_000
"""Largest count of one Start, in instances: beyond any cluster, so that only slips are refused."""
_NUMBER = (int, float)
_ACTIONS = (Start, Retire, ChangeRole, Wake, Sleep)
_WRONG_ROLE = {RequestClass.INTERACTIVE: Role.BATCH, RequestClass.BATCH: Role.INTERACTIVE}


def check_fleet_decision(decision: object, snapshot: FleetSnapshot, seen: Mapping[str, str]) -> None:
    """Raises PolicyError naming the field unless all of a decision can be carried out. O(its size).

    seen: the model of every instance that was ever in a snapshot. One of them may have gone meanwhile: an
    action on it is void, and no mistake.
    """
    if not isinstance(decision, FleetDecision):
        raise PolicyError(f"returned {one_line(decision)}, which is no FleetDecision")
    models = {model.name for model in snapshot.models}
    for field in ("actions", "assessments"):
        value = getattr(decision, field)
        if not isinstance(value, tuple | list):
            raise PolicyError(f"{field} is {one_line(value)}; it must be a tuple")
    for number, action in enumerate(decision.actions):
        try:
            _check_action(action, models, seen)
        except PolicyError as error:
            raise PolicyError(f"actions[{number}]{error}") from None
    for number, assessment in enumerate(decision.assessments):
        try:
            if not isinstance(assessment, ModelAssessment):
                raise PolicyError(f" is {one_line(assessment)}, which is no ModelAssessment")
            _check_common(assessment, models)
        except PolicyError as error:
            raise PolicyError(f"assessments[{number}]{error}") from None


def _check_action(action: object, models: set[str], seen: Mapping[str, str]) -> None:
    if not isinstance(action, _ACTIONS):
        raise PolicyError(f" is {one_line(action)}, which is no Start, Retire, ChangeRole, Wake or Sleep")
    _check_common(action, models)
    if isinstance(action, Start | ChangeRole | Wake) and not isinstance(action.role, Role):
        raise _wrong(action, "role", "a chiron.policy.words.Role")
    if isinstance(action, Start):
        if not _is_int(action.count, 0, MOST_STARTS):
            raise _wrong(action, "count", f"an int from 0 to {MOST_STARTS}")
        return
    if not isinstance(action.instance_id, str) or action.instance_id not in seen:
        raise _wrong(action, "instance_id", "the id of an instance that a snapshot has shown")
    if seen[action.instance_id] != action.model:
        raise _wrong(action, "instance_id", f"the id of an instance of model {action.model!r}")


def _check_common(made: Any, models: set[str]) -> None:
    if not isinstance(made.model, str) or made.model not in models:
        raise _wrong(made, "model", "one of " + ", ".join(map(repr, sorted(models))))
    _check_reason(made)
    if not isinstance(made.alternatives, tuple | list):
        raise _wrong(made, "alternatives", "a tuple of chiron.policy.decisions.Alternative")
    for number, other in enumerate(made.alternatives):
        if not isinstance(other, Alternative):
            raise _wrong(made, "alternatives", "a tuple of chiron.policy.decisions.Alternative")
        where = f"{type(made).__name__}.alternatives[{number}]"
        for field in ("action", "why_not"):
            if not isinstance(getattr(other, field), str):
                raise PolicyError(f": {where}.{field} is {one_line(getattr(other, field))}; it must be a str")
        _check_numbers(other, where)


def _check_reason(made: Any) -> None:
    if not isinstance(made.reason, str):
        raise _wrong(made, "reason", "a str")
    _check_numbers(made, type(made).__name__)


def _check_numbers(made: Any, where: str) -> None:
    if not isinstance(made.numbers, Mapping):
        raise PolicyError(
            f": {where}.numbers is {one_line(made.numbers)}; it must be a mapping of names to numbers"
        )
    for name, number in made.numbers.items():
        if not (isinstance(name, str) and _is_finite(number)):
            raise PolicyError(
                f": {where}.numbers[{one_line(name)}] is {one_line(number)}; it must be a finite int or float"
            )


def check_limits(limits: object, sample: InstanceSample) -> None:
    """Raises PolicyError naming the field unless an engine can run with the limits. O(1)."""
    if not isinstance(limits, Limits):
        raise PolicyError(f"returned {one_line(limits)}, which is no Limits")
    for field, least, most in (
        ("batch_size", 1, sample.max_batch_size),
        ("step_token_budget", 1, sample.max_step_token_budget),
        ("safe_batch_size", 1, sample.max_batch_size),
    ):
        value = getattr(limits, field)
        if not _is_int(value, least, most):
            raise PolicyError(
                f"Limits.{field} is {one_line(value)}; it must be an int from {least} to {most}"
            )
    try:
        _check_reason(limits)
    except PolicyError as error:
        raise PolicyError(str(error).removeprefix(": ")) from None


def check_pick(answer: object, request: DispatchRequest, instances: Sequence[InstanceView]) -> None:
    """Raises PolicyError naming the field unless a request can be placed so. O(number of instances)."""
    if isinstance(answer, Refusal):
        if not isinstance(answer.kind, RefusalKind):
            raise PolicyError(f"Refusal.kind is {one_line(answer.kind)}; it must be a RefusalKind")
        return
    if not isinstance(answer, Decision):
        raise PolicyError(f"returned {one_line(answer)}, which is neither a Decision nor a Refusal")
    key = answer.instance_id
    view = None
    for each in instances:  # As a loop, for this is done for every request.
        if each.instance_id is key or (type(key) is str and each.instance_id == key):
            view = each
            break
    if view is None:
        raise PolicyError(
            f"Decision.instance_id is {one_line(key)}, which is none of the {len(instances)} given"
        )
    if key in request.excluded:
        raise PolicyError(f"Decision.instance_id is {one_line(key)}, which is excluded")
    if view.role is _WRONG_ROLE[request.request_class]:
        raise PolicyError(
            f"Decision.instance_id is {one_line(key)}, which takes {view.role.name.lower()} work only"
        )
    scores = answer.scores
    if type(scores) is not dict and not isinstance(scores, Mapping):
        raise PolicyError(
            f"Decision.scores is {one_line(scores)}; it must be a mapping of instance ids to seconds"
        )
    score = scores.get(key, 0.0)
    if not (isinstance(score, _NUMBER) and score >= 0):
        raise PolicyError(
            f"Decision.scores[{one_line(key)}] is {one_line(score)}; it must be an int or float >= 0"
        )


class CheckedAutoscaler:
    """A global autoscaler whose decisions are checked."""

    def __init__(self, autoscaler: GlobalAutoscaler, *, tell_time: bool = True) -> None:
        """`tell_time`: a mistake names the snapshot's time; of use where that clock can be read."""
        self._autoscaler = autoscaler
        self._tell_time = tell_time
        self._seen: dict[str, str] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """See `GlobalAutoscaler.decide`. Raises PolicyError."""
        for model in snapshot.models:
            for instance in model.instances:
                self._seen[instance.instance_id] = model.name
        about = f" at {snapshot.now_s:g} s" if self._tell_time else ""
        try:
            decision = self._autoscaler.decide(snapshot)
        except FAILURES as error:
            raise _failed("autoscaler", self._autoscaler, about, error) from error
        try:
            check_fleet_decision(decision, snapshot, self._seen)
        except PolicyError as error:
            raise _mistaken("autoscaler", self._autoscaler, about, error) from None
        return decision


class CheckedLocal:
    """One instance's local autoscaler, whose limits are checked."""

    def __init__(self, local: LocalAutoscaler, instance_id: str) -> None:
        self._local = local
        self._instance_id = instance_id

    def decide(self, sample: InstanceSample) -> Limits:
        """See `LocalAutoscaler.decide`. Raises PolicyError."""
        try:
            limits = self._local.decide(sample)
        except FAILURES as error:
            about = f" for instance {self._instance_id}"
            raise _failed("local autoscaler", self._local, about, error) from error
        try:
            check_limits(limits, sample)
        except PolicyError as error:
            about = f" for instance {self._instance_id}"
            raise _mistaken("local autoscaler", self._local, about, error) from None
        return limits


class CheckedDispatcher:
    """A dispatcher whose picks are checked."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """See `Dispatcher.pick`. Raises PolicyError."""
        try:
            answer = self._dispatcher.pick(request, instances)
        except FAILURES as error:
            raise _failed("dispatcher", self._dispatcher, f" {_about(request)}", error) from error
        try:
            check_pick(answer, request, instances)
        except PolicyError as error:
            raise _mistaken("dispatcher", self._dispatcher, f" {_about(request)}", error) from None
        return answer


def _about(request: DispatchRequest) -> str:
    kind = "a batch" if request.request_class is RequestClass.BATCH else "an interactive"
    return f"for {kind} request with {request.prompt_tokens} prompt tokens"


def _failed(what: str, policy: object, about: str, error: BaseException) -> PolicyError:
    return failure(f"{what} {class_name(policy)} failed{about}", type(policy).__module__, error)


def _mistaken(what: str, policy: object, about: str, error: PolicyError) -> PolicyError:
    return PolicyError(f"{what} {class_name(policy)}{about}: {error}")


def _wrong(made: object, field: str, wanted: str) -> PolicyError:
    return PolicyError(
        f": {type(made).__name__}.{field} is {one_line(getattr(made, field))}; it must be {wanted}"
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and isfinite(value))


def _is_int(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
