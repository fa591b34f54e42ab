"""Configurations of small vLLM engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.worker.engines.base import EngineConfig


def engine_config(weights: Path | str, **changes: Any) -> EngineConfig:
    """A configuration for the tiny model; `engine_args` add to the usual ones."""
    engine_args = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "max_num_batched_tokens": 512,
        **changes.pop("engine_args", {}),
    }
    fields: dict[str, Any] = {
        "instance_id": "instance-1",
        "model": "tiny",
        "weights": str(weights),
        "revision": "",
        "gpus": 1,
        "max_batch_size": 8,
        "batch_size": 8,
        "step_token_budget": 0,
        "chat_template": "",
        **changes,
    }
    return EngineConfig(engine_args=engine_args, **fields)
