"""Finds an engine by name: `vllm`, `sim`, or `module:Class` for any other."""

from __future__ import annotations

import importlib

from services.worker.engines.base import Engine, EngineLoadError

_BUILT_IN = {
    "sim": "services.worker.engines.sim:SimEngine",
    "vllm": "services.worker.engines.vllm:VllmEngine",
}


def load_engine(name: str) -> type[Engine]:
    """Imports the engine class. Raises EngineLoadError that names what was not found."""
    target = _BUILT_IN.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon or not module_name or not class_name:
        known = ", ".join(sorted(_BUILT_IN))
        raise EngineLoadError(f"unknown engine {name!r}: known are {known}, or module:Class")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise EngineLoadError(f"engine {name!r}: cannot import {module_name}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise EngineLoadError(f"engine {name!r}: {module_name} has no Engine class {class_name}")
    return found
