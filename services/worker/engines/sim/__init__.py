"""The sim engine: real scheduling on a modelled GPU, writing deterministic text."""

from services.worker.engines.sim.engine import SimEngine

__all__ = ["SimEngine"]
