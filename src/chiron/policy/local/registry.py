"""Makes a local autoscaler by its name, or from `module:Class`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chiron.policy.custom import load_custom
from chiron.policy.local.base import LocalAutoscaler
from chiron.policy.local.model import ModelAutoscaler
from chiron.policy.local.reactive import ReactiveAutoscaler

DEFAULT = "model"
_BUILT_IN: Mapping[str, Callable[[], LocalAutoscaler]] = {
    "reactive": ReactiveAutoscaler,
    "model": ModelAutoscaler,
}
NAMES = tuple(sorted(_BUILT_IN))
"""Those that come with Chiron."""


class UnknownLocalAutoscalerError(ValueError):
    """No local autoscaler has this name; the text lists those there are."""


def load_local(name: str = DEFAULT) -> LocalAutoscaler:
    """Make a new local autoscaler, one for each instance.

    Raises UnknownLocalAutoscalerError, and PolicyError when the class's own code fails.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        known = ", ".join(NAMES)
        raise UnknownLocalAutoscalerError(
            f"unknown local autoscaler {name!r}: known are {known}, or module:Class"
        )
    made: LocalAutoscaler = load_custom("local autoscaler", name, "decide", UnknownLocalAutoscalerError)
    return made
