"""Which numbers of a policy can be tuned, and between which values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from chiron.config import ConfigError
from chiron.sim.parameters import ParameterError, Parameters, settable
from chiron.sim.policies import STATIC, PolicyChoice, StaticLimits
from chiron.sim.settings import SimSettings

_STEPS = (0.25, 0.5, 2.0, 4.0)
"""Times the value that a knob has."""
_NEAR_ONE = 0.8
"""From here on a share's distance from 1 is what is multiplied: 0.95 becomes 0.9, not 1.9."""
Knobs = Mapping[str, tuple[float, ...]]
"""Values by name, ascending, the one that it has among them."""


def knobs_of(policy: PolicyChoice, settings: SimSettings) -> Knobs:
    """Every number that the policy's autoscaler is set to, at a quarter, a half, twice and four times of it.

    Of policies without a local autoscaler the batch size too. Values that are refused, by the autoscaler or
    by a limit of a model, are left out, and so are knobs that then have one value only. A share of 0.8 or
    more is varied by its distance from 1. Raises ConfigError for a policy that cannot be used.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name, (kind, has) in _now(policy, settings).items():
        if kind is bool:
            wanted: Iterable[float] = (0.0, 1.0)
        elif _NEAR_ONE <= has < 1:
            wanted = (1 - step * (1 - has) for step in _STEPS)
        else:
            wanted = (has * step for step in _STEPS)
        if kind is int:
            # 0 often stands for what is no number: no limit, or the model's own.
            wanted = (float(round(value)) for value in wanted if round(value) >= 1)
        tried = sorted({has, *(round(value, 10) for value in wanted)})
        values = tuple(value for value in tried if value == has or _takes(policy, settings, name, value))
        if len(values) > 1:
            found[name] = values
    return found


def given_knobs(texts: Iterable[str], policy: PolicyChoice, settings: SimSettings) -> Knobs:
    """NAME=VALUE,… each: these knobs alone, between these values and the one that each has.

    Raises ConfigError: a knob that the policy does not have, or a value that it does not take.
    """
    known = _now(policy, settings)
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, equals, given = (part.strip() for part in text.partition("="))
        if not (name and equals and given):
            raise ConfigError(f"--knob: must be NAME=VALUE,…, not {text!r}")
        if name in found:
            raise ConfigError(f"--knob: {name!r} is there twice")
        if name not in known:
            raise ConfigError(f"--knob: unknown knob {name!r}; known are {', '.join(sorted(known))}")
        try:
            values = {float(part) for part in given.split(",")}
        except ValueError:
            raise ConfigError(f"--knob: must be NAME=VALUE,…, not {text!r}") from None
        for value in values:
            try:
                _with(policy, name, value).make().settings(settings)
            except ConfigError as error:
                raise ConfigError(f"--knob: {error}") from error
        found[name] = tuple(sorted({known[name][1], *values}))
    return found


def now_at(policy: PolicyChoice, settings: SimSettings) -> Mapping[str, float]:
    """What each knob is set to. Raises ConfigError."""
    return {name: has for name, (_, has) in _now(policy, settings).items()}


def _now(policy: PolicyChoice, settings: SimSettings) -> Mapping[str, tuple[type, float]]:
    made = policy.make()
    found: dict[str, tuple[type, float]] = {}
    if made.autoscaler_settings is not None:
        for name, kind in settable(made.autoscaler_settings).items():
            has = getattr(made.autoscaler_settings, name)
            if has is not None:
                found[name] = kind, float(has)
    sizes = {model.initial_batch_size for model in made.settings(settings).models}
    if made.parts.local == STATIC and len(sizes) == 1:
        found["batch_size"] = settable(StaticLimits)["batch_size"], float(sizes.pop())
    return found


def _takes(policy: PolicyChoice, settings: SimSettings, name: str, value: float) -> bool:
    try:
        _with(policy, name, value).make().settings(settings)
    except ParameterError:
        return False
    return True


def _with(policy: PolicyChoice, name: str, value: float) -> PolicyChoice:
    return dataclasses.replace(policy, parameters=Parameters({name: value}).over(policy.parameters))
