"""Engines whose figures fit into no report, loaded by tests as module:Class."""

from __future__ import annotations

import dataclasses

from services.worker.engines.base import EngineInfo, EngineStats
from services.worker.engines.sim import SimEngine


class EndlessEngine(SimEngine):
    """The sim engine, but it claims more KV cache than 64 bits can say."""

    @property
    def info(self) -> EngineInfo:
        """What is fixed since the start."""
        return dataclasses.replace(super().info, kv_capacity_tokens=10**20)


class MuteEngine(SimEngine):
    """The sim engine, but it cannot be asked how it is."""

    def stats(self) -> EngineStats:
        """Raises what no engine should."""
        raise ZeroDivisionError("no figures")
