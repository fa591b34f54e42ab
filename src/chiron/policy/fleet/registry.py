"""Global autoscalers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chiron.policy.custom import load_custom
from chiron.policy.fleet.chiron import Chiron
from chiron.policy.fleet.paper import ChironPaper
from chiron.policy.fleet.protocol import GlobalAutoscaler
from chiron.policy.fleet.settings import ChironSettings


class UnknownAutoscalerError(ValueError):
    """No global autoscaler has this name; the text lists those there are."""


_BUILT_IN: Mapping[str, Callable[[ChironSettings | None], GlobalAutoscaler]] = {
    "chiron": Chiron,
    "chiron-paper": ChironPaper,
}


def autoscaler_names() -> list[str]:
    """The built-in ones, by name."""
    return sorted(_BUILT_IN)


def load_autoscaler(name: str, settings: ChironSettings | None = None) -> GlobalAutoscaler:
    """Makes a global autoscaler by its name, or from `module:Class`, which takes no settings.

    Raises UnknownAutoscalerError, and PolicyError when the class's own code fails.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name](settings)
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        known = ", ".join(autoscaler_names())
        raise UnknownAutoscalerError(f"unknown autoscaler {name!r}: known are {known}, or module:Class")
    made: GlobalAutoscaler = load_custom("autoscaler", name, "decide", UnknownAutoscalerError)
    return made
