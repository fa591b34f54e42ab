"""The engine in docs/writing-an-engine.md works exactly as it is written there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.internal.v1 import worker_pb2 as wpb
from chiron.v1 import inference_pb2 as pb
from tests.support.chiron_command import chiron
from tests.support.python_path import python_path
from tests.support.worker_process import (
    ROOT,
    WorkerProcess,
    failure,
    read_all,
    request,
    slots,
    violated_fields,
    worker_process,
)


def shown(language: str, holding: str) -> str:
    """The page's first block of this language that holds a text."""
    page = (ROOT / "docs" / "writing-an-engine.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(block for block in blocks if holding in block)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    (tmp_path / "echo_engine.py").write_text(shown("python", "EchoEngine("))
    spec = {"name": "toy", "engine": "echo_engine:EchoEngine", "max_batch_size": 2}
    async with worker_process(tmp_path, spec, environ={"PYTHONPATH": python_path(tmp_path)}) as process:
        await process.until()
        yield process


async def test_it_repeats_the_prompt_and_never_sends_half_a_character(worker: WorkerProcess) -> None:
    prompt = "Ωmega naïve 🌊!"
    asked = request(prompt, sampling={"max_tokens": 100, "ignore_eos": False})
    deltas = await read_all(worker.inference.Generate(asked))
    assert "".join(delta.text for delta in deltas) == prompt
    assert [token for delta in deltas for token in delta.token_ids] == list(prompt.encode())
    assert deltas[-1].text_ends[-1] == len(prompt)
    assert deltas[-1].finish_reason == pb.FINISH_REASON_STOP
    assert not any("\ufffd" in delta.text for delta in deltas)


async def test_it_refuses_by_name_what_it_does_not_do(worker: WorkerProcess) -> None:
    error = await failure(worker.inference.Generate(request(sampling={"stop": ["x"]})))
    assert violated_fields(error) == ["sampling.stop"]


async def test_it_obeys_the_control_socket(worker: WorkerProcess) -> None:
    await worker.control.SetLimits(wpb.SetLimitsRequest(batch_size=1))
    first = worker.inference.Generate(request(request_id="first", sampling={"max_tokens": 4000}))
    await first.read()
    second = worker.inference.Generate(request(request_id="second", sampling={"max_tokens": 4000}))
    await worker.load_when(lambda load: (slots(load.running), slots(load.waiting)) == (1, 1))
    answer = await worker.control.Preempt(wpb.PreemptRequest(request_ids=["first", "second"]))
    assert list(answer.preempted_request_ids) == ["first"]
    first.cancel()
    assert (await second.read()).deltas
    second.cancel()
    await worker.idle()
    await worker.control.Sleep(wpb.SleepRequest(level=1))
    await worker.control.Wake(wpb.WakeRequest())
    assert await read_all(worker.inference.Generate(request()))


async def test_its_configuration_and_its_model_are_taken_as_written(tmp_path: Path) -> None:
    (tmp_path / "echo_engine.py").write_text(shown("python", "EchoEngine("))
    config, models = tmp_path / "chiron.toml", tmp_path / "models.toml"
    config.write_text(shown("toml", "[agent]").replace("/opt/engines", str(tmp_path)))
    models.write_text(shown("toml", "[models."))
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path / "run", config=config) as cluster:
        applied = await chiron("models", "apply", str(models), f"--controller={cluster.controller_address}")
        assert applied.stdout == "echo: applied (spec version 1)\n", applied.stderr
        await cluster.wait_ready("echo")
        async with Client(cluster.router_addresses) as client:
            answer = await client.complete(model="echo", prompt="Hello, echo!", max_tokens=100)

    assert answer.text == "Hello, echo!"
