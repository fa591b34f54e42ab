"""Settings under which several vLLM engines share a small machine without GPUs, and a model for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chiron.v1 import cluster_pb2 as pb

CPU_WORKER_ENV: Mapping[str, str] = {
    # One thread an engine and no pinning: with more, engines on a few cores wait for each other's threads.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables of a worker's environment."""


class ModelUnavailableError(Exception):
    """A model for the demonstration cannot be had; the text says why."""


def vllm_spec(weights: str, *, name: str = "") -> pb.ModelSpec:
    """A spec of one small vLLM instance; the name is the weights folder's when none is given."""
    spec = pb.ModelSpec(
        name=name or Path(weights).name.lower().replace("_", "-"),
        engine="vllm",
        weights=str(Path(weights).resolve()),
        gpus_per_instance=1,
        min_instances=1,
        max_batch_size=16,
    )
    spec.engine_args.update({"enforce_eager": True, "max_model_len": 2048})
    return spec


def smollm2_spec() -> pb.ModelSpec:
    """SmolLM2-135M-Instruct, built on first use below `.models`.

    Raises:
        ModelUnavailableError: it cannot be built here, e.g. because torch is not installed.
    """
    from chiron.testing.models import ModelBuildError, smollm2

    try:
        return vllm_spec(str(smollm2()), name="smollm2")
    except (ModelBuildError, ImportError) as error:
        raise ModelUnavailableError(f"SmolLM2-135M-Instruct cannot be built: {error}") from error
