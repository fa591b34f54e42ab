"""A policy's mistake is one line that names the class, what it was asked about, the field and the value."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chiron.policy.checked import CheckedAutoscaler, CheckedDispatcher, CheckedLocal
from chiron.policy.custom import PolicyError
from chiron.policy.decisions import (
    ChangeRole,
    FleetDecision,
    Limits,
    ModelAssessment,
    Retire,
    Sleep,
    Start,
    Wake,
)
from chiron.policy.dispatch import (
    Decision,
    DispatchRequest,
    InstanceView,
    Refusal,
    RefusalKind,
    load_dispatcher,
)
from chiron.policy.fleet import UnknownAutoscalerError, load_autoscaler
from chiron.policy.local import load_local
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, InstanceSample, ModelFleet, Traffic
from chiron.policy.words import Phase, RequestClass, Role

ANY: dict[str, float] = {}


class Answers:
    """Any kind of policy: gives the answer that it was made with, or raises it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def decide(self, _: object) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def pick(self, request: object, _: object) -> Any:
        return self.decide(request)


def fleet(name: str, *ids: str) -> ModelFleet:
    instances = tuple(FleetInstance(key, "n", Role.MIXED, Phase.READY, 8, 8) for key in ids)
    return ModelFleet(name, 1, 0, 0, 1.0, 0.1, 1.0, instances, Traffic(1.0))


def snapshot(now_s: float, *models: ModelFleet) -> FleetSnapshot:
    return FleetSnapshot(now_s, models)


def ask_autoscaler(answer: object) -> FleetDecision:
    return CheckedAutoscaler(Answers(answer)).decide(snapshot(12.0, fleet("m", "m-0"), fleet("o", "o-0")))


def ask_dispatcher(answer: object) -> Decision | Refusal:
    views = [
        InstanceView(key, role, 8, 0, 0, 0, 0, 0, 1000, 0.0, 1.0)
        for key, role in (("m-0", Role.MIXED), ("m-1", Role.BATCH), ("m-2", Role.INTERACTIVE))
    ]
    request = DispatchRequest(RequestClass.INTERACTIVE, 70, frozenset({"m-2"}))
    return CheckedDispatcher(Answers(answer)).pick(request, views)


def ask_local(answer: object) -> Limits:
    sample = InstanceSample(
        interval_s=1.0,
        batch_size=8,
        max_batch_size=16,
        step_token_budget=512,
        max_step_token_budget=2048,
        running_interactive=1,
        running_batch=0,
        waiting_interactive=0,
        waiting_batch=0,
        steps=10,
        output_tokens=10,
        prompt_tokens=10,
        itl_mean_s=0.01,
        itl_p95_s=0.01,
        itl_slo_s=0.1,
        kv_usage=0.1,
        kv_capacity_tokens=1000,
        preemptions=0,
        saturated=False,
    )
    return CheckedLocal(Answers(answer), "m-0").decide(sample)


def one(action: Any) -> FleetDecision:
    return FleetDecision((action,), ())


def found(model: Any, numbers: Any) -> FleetDecision:
    return FleetDecision((), (ModelAssessment(model, numbers, "why"),))


def start(**changes: Any) -> FleetDecision:
    fields: dict[str, Any] = {"model": "m", "role": Role.MIXED, "count": 1, "reason": "why", "numbers": {}}
    return one(Start(**fields | changes))


FLEET_MISTAKES = [
    (None, "returned None"),
    ([], r"returned \[\]"),
    (FleetDecision("ab", ()), "actions is 'ab'"),  # type: ignore[arg-type]
    (FleetDecision((), None), "assessments is None"),  # type: ignore[arg-type]
    (one("x"), r"actions\[0\] is 'x'"),
    (start(model="zz"), r"actions\[0\]: Start.model is 'zz'; it must be one of 'm', 'o'"),
    (start(model=["m"]), "Start.model is"),
    (start(role="foo"), "Start.role is 'foo'"),
    (start(role=None), "Start.role is None"),
    (start(count=-1), "Start.count is -1"),
    (start(count=10**9), "Start.count is 1000000000"),
    (start(count="2"), "Start.count is '2'"),
    (start(count=1.5), "Start.count is 1.5"),
    (start(count=True), "Start.count is True"),
    (start(reason=None), "Start.reason is None"),
    (start(numbers=None), "Start.numbers is None"),
    (start(numbers={"x": math.nan}), r"Start.numbers\['x'\] is nan"),
    (start(numbers={"x": math.inf}), r"Start.numbers\['x'\] is inf"),
    (start(numbers={"x": "1"}), r"Start.numbers\['x'\] is '1'"),
    (start(numbers={7: 1.0}), r"Start.numbers\[7\]"),
    (one(Retire("m", "zz", "why")), "Retire.instance_id is 'zz'"),
    (one(Retire("m", None, "why")), "Retire.instance_id is None"),  # type: ignore[arg-type]
    (
        one(Sleep("m", "o-0", "why")),
        "Sleep.instance_id is 'o-0'; it must be the id of an instance of model 'm'",
    ),
    (one(Wake("m", "m-0", 2, "why")), "Wake.role is 2"),  # type: ignore[arg-type]
    (one(ChangeRole("m", "m-0", "foo", "why")), "ChangeRole.role is 'foo'"),  # type: ignore[arg-type]
    (FleetDecision((), ("x",)), r"assessments\[0\] is 'x'"),  # type: ignore[arg-type]
    (found("zz", ANY), r"assessments\[0\]: ModelAssessment.model is 'zz'"),
    (found("m", {"x": math.nan}), r"ModelAssessment.numbers\['x'\] is nan"),
]
PICK_MISTAKES = [
    (None, "returned None"),
    ("x", "returned 'x'"),
    (Decision("zzz", "why", {}), "Decision.instance_id is 'zzz', which is none of the 3 given"),
    (Decision(None, "why", {}), "Decision.instance_id is None"),  # type: ignore[arg-type]
    (Decision("m-1", "why", {}), "Decision.instance_id is 'm-1', which takes batch work only"),
    (Decision("m-2", "why", {}), "Decision.instance_id is 'm-2', which is excluded"),
    (Decision("m-0", "why", None), "Decision.scores is None"),  # type: ignore[arg-type]
    (Decision("m-0", "why", {"m-0": math.nan}), r"Decision.scores\['m-0'\] is nan"),
    (Decision("m-0", "why", {"m-0": "1"}), r"Decision.scores\['m-0'\] is '1'"),  # type: ignore[dict-item]
    (Refusal("no", "no"), "Refusal.kind is 'no'"),  # type: ignore[arg-type]
]
LIMIT_MISTAKES = [
    (None, "returned None"),
    (Limits(-1, 512, 8, "why"), "Limits.batch_size is -1; it must be an int from 1 to 16"),
    (Limits(0, 512, 8, "why"), "Limits.batch_size is 0"),
    (Limits(17, 512, 8, "why"), "Limits.batch_size is 17"),
    (Limits("a", 512, 8, "why"), "Limits.batch_size is 'a'"),  # type: ignore[arg-type]
    (Limits(7.5, 512, 8, "why"), "Limits.batch_size is 7.5"),  # type: ignore[arg-type]
    (Limits(8, math.nan, 8, "why"), "Limits.step_token_budget is nan"),  # type: ignore[arg-type]
    (Limits(8, 4096, 8, "why"), "Limits.step_token_budget is 4096; it must be an int from 1 to 2048"),
    (Limits(8, 512, -7, "why"), "Limits.safe_batch_size is -7"),
]
AUTOSCALER = rf"^autoscaler {__name__}:Answers at 12 s: "
DISPATCHER = rf"^dispatcher {__name__}:Answers for an interactive request with 70 prompt tokens: "
LOCAL = rf"^local autoscaler {__name__}:Answers for instance m-0: "


@pytest.mark.parametrize(("answer", "text"), FLEET_MISTAKES)
def test_a_fleet_decision_that_cannot_be_carried_out_is_named(answer: object, text: str) -> None:
    with pytest.raises(PolicyError, match=AUTOSCALER + ".*" + text):
        ask_autoscaler(answer)


@pytest.mark.parametrize(("answer", "text"), PICK_MISTAKES)
def test_a_pick_that_cannot_be_carried_out_is_named(answer: object, text: str) -> None:
    with pytest.raises(PolicyError, match=DISPATCHER + text):
        ask_dispatcher(answer)


@pytest.mark.parametrize(("answer", "text"), LIMIT_MISTAKES)
def test_limits_that_no_engine_can_run_with_are_named(answer: object, text: str) -> None:
    with pytest.raises(PolicyError, match=LOCAL + text):
        ask_local(answer)


@pytest.mark.parametrize(
    ("ask", "about"),
    [
        (ask_autoscaler, "autoscaler {} failed at 12 s"),
        (ask_dispatcher, "dispatcher {} failed for an interactive request with 70 prompt tokens"),
        (ask_local, "local autoscaler {} failed for instance m-0"),
    ],
)
@pytest.mark.parametrize(
    ("raised", "text"),
    [(ValueError("two\n  lines"), "ValueError: two lines"), (SystemExit(0), "SystemExit: 0")],
)
def test_what_a_policy_raises_is_told_with_its_own_last_line(
    ask: Callable[[object], object], about: str, raised: BaseException, text: str
) -> None:
    line = Answers.decide.__code__.co_firstlineno + 2
    with pytest.raises(PolicyError) as caught:
        ask(raised)
    assert str(caught.value) == f"{about.format(f'{__name__}:Answers')}: {text} ({__file__}:{line})"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_interrupt_is_nobodys_mistake() -> None:
    with pytest.raises(KeyboardInterrupt):
        ask_autoscaler(KeyboardInterrupt())


def test_answers_that_can_be_carried_out_come_back_as_they_are() -> None:
    actions = (
        Start("m", Role.BATCH, 0, "none", {"x": 10**400, "y": 0.5}),
        ChangeRole("m", "m-0", Role.BATCH, "why"),
        Retire("o", "o-0", "why"),
    )
    decision = FleetDecision(actions, (ModelAssessment("m", {"ibp": 0.0}, "why"),))
    limits = Limits(16, 2048, 1, "why")
    pick = Decision("m-0", "why", {"m-0": 0.0})
    refusal = Refusal(RefusalKind.FULL, "full")

    assert ask_autoscaler(decision) is decision
    assert ask_local(limits) is limits
    assert ask_dispatcher(pick) is pick
    assert ask_dispatcher(refusal) is refusal


def test_an_action_on_an_instance_that_a_snapshot_has_shown_is_no_mistake_after_it_has_gone() -> None:
    checked = CheckedAutoscaler(Answers(one(Retire("m", "m-0", "why"))))

    checked.decide(snapshot(1.0, fleet("m", "m-0")))

    assert checked.decide(snapshot(2.0, fleet("m"))).actions


class Broken:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cannot_be_shown_or_is_very_long_still_makes_one_line() -> None:
    with pytest.raises(PolicyError, match="returned <Broken>, which"):
        ask_autoscaler(Broken())
    with pytest.raises(PolicyError) as caught:
        ask_autoscaler("long\n" * 10_000)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


class NeedsArgument:
    """Cannot be made without one."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def decide(self, _: object) -> None: ...

    def pick(self, *_: object) -> None: ...


class FailsWhenMade(NeedsArgument):
    """Cannot be made at all."""

    def __init__(self) -> None:
        raise ValueError("not like this")


@pytest.mark.parametrize(
    ("load", "what"),
    [
        (load_autoscaler, "autoscaler"),
        (load_dispatcher, "dispatcher"),
        (load_local, "local autoscaler"),
    ],
)
def test_a_constructor_that_fails_is_named_when_the_policy_is_loaded(
    load: Callable[[str], object], what: str
) -> None:
    name = f"{__name__}:NeedsArgument"
    with pytest.raises(
        PolicyError, match=rf"^{what} {name}: NeedsArgument\(\) failed: TypeError: .*'wanted'"
    ):
        load(name)
    name = f"{__name__}:FailsWhenMade"
    with pytest.raises(PolicyError, match=rf"^{what} {name}: FailsWhenMade\(\) failed: ValueError: not like"):
        load(name)


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        ("policy_with_bad_syntax", "class Any(:\n", "SyntaxError: .*line 1"),
        ("policy_that_divides", "\nhalf = 1 / 0\n", r"ZeroDivisionError: .* \(.*policy_that_divides.py:2\)"),
    ],
)
def test_a_module_that_fails_is_named(
    name: str, source: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PolicyError, match=f"^autoscaler {name}:Any: module {name} failed: {text}"):
        load_autoscaler(f"{name}:Any")
    with pytest.raises(UnknownAutoscalerError, match="no_such_module"):
        load_autoscaler("no_such_module:Any")
