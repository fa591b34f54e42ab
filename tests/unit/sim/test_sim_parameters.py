"""What policies are set to: numbers by name, and what is wrong with the others."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from chiron.policy.fleet import Chiron, ChironSettings
from chiron.sim.baselines.llumnix import FreenessThresholds
from chiron.sim.parameters import ParameterError, Parameters, adjusted, parsed
from chiron.sim.policies import PolicyChoice
from tests.support.sim_worlds import world


@dataclass(frozen=True, slots=True)
class Knobs:
    """One setting of each kind."""

    share: float = 0.5
    count: int = 3
    on: bool = False
    limit_s: float | None = None
    name: str = "x"

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share: must be at most 1, not {self.share:g}")


def test_parameters_are_the_same_in_any_order_and_survive_a_process() -> None:
    one, other = Parameters({"b": 2, "a": 1.5}), Parameters([("a", 1.5), ("b", 2.0)])

    assert (one, hash(one), str(one)) == (other, hash(other), "a=1.5,b=2")
    assert pickle.loads(pickle.dumps(one)) == one
    assert dict(one) == {"a": 1.5, "b": 2.0}
    assert one != Parameters({"a": 1.5})
    assert one.over({"b": 3, "c": 4}) == {"a": 1.5, "b": 2.0, "c": 4.0}
    with pytest.raises(KeyError):
        one["c"]


@pytest.mark.parametrize("value", ["1", None, float("nan")])
def test_what_is_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(ParameterError, match="'a' must be a number") as caught:
        Parameters({"a": value})  # type: ignore[dict-item]

    assert caught.value.name == "a"


def test_settings_take_numbers_of_their_own_kinds() -> None:
    found = adjusted(Knobs(), Parameters({"share": 1, "count": 4, "on": 1, "limit_s": 2}))

    assert found == Knobs(share=1.0, count=4, on=True, limit_s=2.0)
    assert (type(found.count), type(found.on), type(found.share)) == (int, bool, float)


@pytest.mark.parametrize(
    ("name", "number", "problem"),
    [
        ("count", 1.5, "'count' must be a whole number, not 1.5"),
        ("count", float("inf"), "'count' must be a whole number, not inf"),
        ("on", 2, "'on' must be 0 or 1, not 2"),
        ("share", 2, "share: must be at most 1, not 2"),
    ],
)
def test_what_a_setting_does_not_take_is_refused_by_name(name: str, number: float, problem: str) -> None:
    with pytest.raises(ParameterError, match=f"^{problem}$") as caught:
        adjusted(Knobs(), {name: number})

    assert caught.value.name == name


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["a"], "must be NAME=VALUE, not 'a'"),
        (["=1"], "must be NAME=VALUE, not '=1'"),
        (["a=b"], "'a' must be a number, not 'b'"),
        (["a=nan"], "'a' must be a number"),
        (["a=1", "a=1"], "'a' is there twice"),
    ],
)
def test_assignments_that_are_none(texts: list[str], problem: str) -> None:
    with pytest.raises(ParameterError, match=problem):
        parsed(texts)


def test_a_choice_with_parameters_can_be_a_key_and_says_them_in_its_label() -> None:
    one = PolicyChoice("llumnix", parameters={"in_above": 160, "out_below": 110})
    other = PolicyChoice("llumnix", parameters={"out_below": 110.0, "in_above": 160.0})

    assert {one: 1}[other] == 1
    assert one.label == "llumnix[in_above=160,out_below=110]"
    assert PolicyChoice("llumnix", local="model", parameters={"batch_size": 8}).label == (
        "llumnix[local=model,batch_size=8]"
    )
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != PolicyChoice("llumnix")


def test_parameters_set_the_autoscaler_whatever_names_it() -> None:
    llumnix = PolicyChoice("llumnix", parameters={"out_below": 110, "in_above": 160}).make()
    chiron = PolicyChoice("fixed", autoscaler="chiron", parameters={"hysteresis": 0.2}).make()

    assert llumnix.autoscaler_settings == FreenessThresholds(110, 160)
    assert chiron.autoscaler_settings == ChironSettings(hysteresis=0.2)
    assert isinstance(chiron.autoscaler, Chiron)
    assert chiron.autoscaler.settings == ChironSettings(hysteresis=0.2)


def test_parameters_go_before_the_settings_of_a_recorded_cluster() -> None:
    recorded = ChironSettings(hysteresis=0.2, payback=3.0)
    choice = PolicyChoice("chiron", settings=recorded, parameters={"payback": 4})

    assert choice.make().autoscaler_settings == ChironSettings(hysteresis=0.2, payback=4.0)
    assert PolicyChoice("chiron", settings=recorded).make().autoscaler_settings == recorded


def test_a_policy_may_give_the_static_limits_with_which_instances_start() -> None:
    made = PolicyChoice("llumnix", parameters={"batch_size": 6, "step_token_budget": 512}).make()

    (model,) = made.settings(world(batch_size=8)).models
    assert (model.initial_batch_size, model.initial_step_token_budget) == (6, 512)
    (model,) = PolicyChoice("llumnix").make().settings(world(batch_size=8)).models
    assert (model.initial_batch_size, model.initial_step_token_budget) == (8, 0)


@pytest.mark.parametrize(("name", "number"), [("batch_size", 2048), ("step_token_budget", 10_000)])
def test_limits_beyond_a_models_ceiling_are_refused(name: str, number: int) -> None:
    made = PolicyChoice("llumnix", parameters={name: number}).make()

    with pytest.raises(ParameterError, match=f"'{name}'.* must not exceed max_{name}") as caught:
        made.settings(world())

    assert caught.value.name == name


def test_an_unknown_parameter_is_one_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError) as caught:
        PolicyChoice("llumnix", parameters={"nonsense": 1}).make()

    assert str(caught.value) == (
        "unknown parameter 'nonsense' of autoscaler 'llumnix'; known are "
        "batch_size, in_above, interval_s, out_below, step_token_budget"
    )


def test_an_autoscaler_of_ones_own_takes_limits_alone() -> None:
    own = "tests.support.sim_worlds:Script"

    made = PolicyChoice("llumnix", autoscaler=own, parameters={"batch_size": 4}).make()
    assert made.limits.batch_size == 4
    with pytest.raises(ParameterError, match=r"known are batch_size, step_token_budget$"):
        PolicyChoice("llumnix", autoscaler=own, parameters={"out_below": 4}).make()
