"""Settings under which several vLLM engines share a small machine without GPUs, and a model for it."""

from __future__ import annotations

import os
import subprocess
import sys
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
    # A log of progress bars hides the line that tells why a model does not load.
    "TQDM_DISABLE": "1",
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
    # A process of its own, because torch and progress bars have no place in this one.
    built = subprocess.run(
        [sys.executable, "-m", "chiron.testing.models", "smollm2"],
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
        check=False,
    )
    if built.returncode:
        said = [line for line in built.stderr.splitlines() if line.strip()]
        why = said[-1].removeprefix("error: ") if said else f"the build ended with status {built.returncode}"
        raise ModelUnavailableError(f"SmolLM2-135M-Instruct cannot be built: {why}")
    return vllm_spec(built.stdout.splitlines()[-1], name="smollm2")
