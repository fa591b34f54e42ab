"""What cannot be loaded is refused with its cause, and leaves no process behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.worker.engines.base import EngineLoadError
from services.worker.engines.vllm import VllmEngine
from tests.support.wait import eventually
from tests.vllm.adapters import write_adapter
from tests.vllm.support import engine_config


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"engine_args": {"max_model_length": 512}}, r"engine_args\.max_model_length.*max_model_len\?"),
        ({"engine_args": {"max_num_seqs": 4}}, r"engine_args\.max_num_seqs.*max_batch_size"),
        ({"engine_args": {"scheduling_policy": "fcfs"}}, r"engine_args\.scheduling_policy.*priority"),
        ({"engine_args": {"tensor_parallel_size": 2}}, r"tensor_parallel_size.*the 1 GPUs.*not 2 × 1"),
        ({"engine_args": {"dtype": "float99"}}, "float99"),
        ({"chat_template": "/nowhere/template.jinja"}, "chat_template: cannot read /nowhere/template.jinja"),
        ({"tool_parser": "no-such-parser"}, "tool_parser: vLLM has no 'no-such-parser'; it has .*hermes"),
        ({"reasoning_parser": "no-such-parser"}, "reasoning_parser: vLLM has no 'no-such-parser'"),
        ({"adapters": {"poet": "/nowhere/poet"}}, "adapter 'poet'.*/nowhere/poet/adapter_config.json"),
        ({"weights": ""}, "weights"),
        ({"weights": "/nowhere/model"}, "weights: /nowhere/model does not exist on this node"),
    ],
)
async def test_a_bad_configuration_is_refused_by_name(
    random_llama: Path, changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(EngineLoadError, match=cause):
        await VllmEngine.start(engine_config(changes.pop("weights", random_llama), **changes))


def engine_processes() -> set[psutil.Process]:
    """Children that live; one that was killed stays a zombie until vLLM's own thread has reaped it."""
    return {child for child in psutil.Process().children() if _is_engine(child)}


def _is_engine(child: psutil.Process) -> bool:
    try:
        return "resource_tracker" not in " ".join(child.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return False


async def test_a_failure_inside_the_engine_process_is_reported_with_its_cause(
    random_llama: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(random_llama, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    before = engine_processes()
    with pytest.raises(EngineLoadError, match="SafetensorError"):
        await VllmEngine.start(engine_config(damaged))
    await eventually(lambda: engine_processes() == before, what="the engine process ends")


async def test_an_adapter_that_cannot_be_loaded_is_named_and_the_engine_stopped(
    random_llama: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "poet", random_llama, rank=4)
    (adapter / "adapter_model.safetensors").unlink()
    before = engine_processes()
    with pytest.raises(EngineLoadError, match="adapter 'poet'"):
        await VllmEngine.start(engine_config(random_llama, adapters={"poet": str(adapter)}))
    await eventually(lambda: engine_processes() == before, what="the engine process ends")
