"""vLLM on the CPU with a tiny random model. `make test-vllm` runs these."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
# vLLM leaves the contexts of its sockets to the garbage collector, which runs at any time.
_IGNORED = ("ignore:Unclosed context:ResourceWarning",)


def pytest_configure(config: pytest.Config) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for ignored in _IGNORED:
        config.addinivalue_line("filterwarnings", ignored)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            # An engine starts in 10 to 40 s, within the first test that uses it.
            item.add_marker(pytest.mark.timeout(240))
            # vLLM, torch and their dependencies warn of their own future.
            item.add_marker(pytest.mark.filterwarnings("default", *_IGNORED))


@pytest.fixture(scope="session")
def random_llama() -> Path:
    from chiron.testing.models import random_llama

    return random_llama()
