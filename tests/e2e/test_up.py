"""`chiron up` in a terminal, as its user meets it."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from openai import AsyncOpenAI

from tests.support.chiron_command import Up, chiron, chiron_up
from tests.support.wait import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "models.toml"


async def test_up_serves_and_ctrl_c_drains_without_leaving_a_process(tmp_path: Path) -> None:
    async with chiron_up(f"--model={EXAMPLE}", "--nodes=2", "--gpus=1", directory=tmp_path) as up:
        await up.ready()
        # itself, a controller, a router, two agents, two workers and the sweeper
        assert len(up.processes()) == 8

        text = await chiron("generate", "toy", "Tell me a story.", "--max-tokens=8", f"--router={up.router}")
        whole = await chiron(
            "generate",
            "toy",
            "-",
            "--max-tokens=8",
            "--temperature=0",
            "--class=batch",
            "--proxy",
            "--slo-ttft=5000",
            "--json",
            f"--router={up.router}",
            stdin="Tell me a story.",
        )
        status = await chiron("status", "--json", f"--controller={up.controller}")
        async with AsyncOpenAI(base_url=up.openai, api_key="none", max_retries=0) as client:
            assert [model.id for model in (await client.models.list()).data] == ["llama3-70b", "toy"]

        assert (text.status, text.stderr) == (0, "")
        assert text.stdout.strip()
        answer = whole.json()
        assert answer["model"] == "toy"
        assert answer["text"]
        assert 1 <= len(answer["token_ids"]) <= 8
        assert answer["usage"]["completion_tokens"] == len(answer["token_ids"])
        assert answer["timing"]["client_ttft_ms"] > 0
        instances = status.json()["instances"]
        assert [instance["state"] for instance in instances] == ["INSTANCE_STATE_READY"] * 2
        assert {instance["node_id"] for instance in instances} == {"node-0", "node-1"}

        up.process.send_signal(signal.SIGINT)

        assert await up.end() == 0
        assert up.lines[-1] == "all processes have ended"
        assert up.processes() == {}


async def test_a_model_that_cannot_load_is_reported_and_the_other_serves(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        '[models.good]\nengine = "sim"\n'
        '[models.bad]\nengine = "sim"\nengine_args = { fail_load = "weights are torn" }\n'
    )
    async with chiron_up(f"--model={models}", "--nodes=1", directory=tmp_path / "run") as up:
        await up.ready()

        served = await chiron("generate", "good", "hi", "--max-tokens=4", f"--router={up.router}")
        refused = await chiron("generate", "bad", "hi", "--max-tokens=4", f"--router={up.router}")
        unknown = await chiron("generate", "ugly", "hi", "--max-tokens=4", f"--router={up.router}")
        shown = await chiron("status", f"--controller={up.controller}")
        status = await chiron("status", "--json", f"--controller={up.controller}")

    assert any("failed: bad-" in line and "weights are torn" in line for line in up.lines)
    assert served.status == 0
    assert refused.status == 1
    assert "weights are torn" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert unknown.status == 1
    assert "good" in unknown.stderr
    assert "bad" in unknown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if line.startswith("bad-")]
    assert "FAILED" in row
    assert "weights are torn" in row
    states = {instance["model"]: instance for instance in status.json()["instances"]}
    assert states["bad"]["state"] == "INSTANCE_STATE_FAILED"
    assert "weights are torn" in states["bad"]["reason"]
    assert states["good"]["state"] == "INSTANCE_STATE_READY"


async def test_a_port_in_use_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with chiron_up(f"--router-port={port}", directory=tmp_path) as up:
            assert await up.end() == 2
            assert up.processes() == {}

    assert up.lines == [f"error: router-0: cannot listen on 127.0.0.1:{port}: is the port in use?"]


async def test_an_unknown_config_key_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    config = tmp_path / "chiron.toml"
    config.write_text("[agent]\nmax_restart = 3\n")

    async with chiron_up(f"--config={config}", directory=tmp_path / "run") as up:
        assert await up.end() == 2
        assert up.processes() == {}

    (line,) = up.lines
    assert line.startswith(f"error: node-0: {config} [agent]: unknown key 'max_restart'; known are ")


async def test_ctrl_c_while_models_load_leaves_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.slow]\nengine = "sim"\nengine_args = { load_time_s = 3600 }\n')

    async with chiron_up(f"--model={models}", "--nodes=1", directory=tmp_path / "run") as up:
        await up.line("LOADING")
        up.process.send_signal(signal.SIGINT)

        assert await up.end() == 0
        assert up.processes() == {}


async def test_a_second_ctrl_c_ends_a_drain_at_once(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.slow]\nengine = "sim"\nengine_args = { load_time_s = 3600 }\n')
    config = tmp_path / "chiron.toml"
    config.write_text("[agent]\nstop_grace_s = 3600\n")
    async with chiron_up(
        f"--model={models}", f"--config={config}", "--nodes=1", directory=tmp_path / "run"
    ) as up:
        await up.line("LOADING")
        up.process.send_signal(signal.SIGINT)
        await up.line("draining")
        up.process.send_signal(signal.SIGINT)

        assert await up.end() in (0, 130)
        assert up.processes() == {}


def one_process(up: Up, part: str) -> int:
    """The one whose command line holds the text."""
    (pid,) = [pid for pid, command in up.processes().items() if part in command]
    return pid


async def test_a_service_that_the_cluster_cannot_do_without_ends_it_with_its_name(tmp_path: Path) -> None:
    async with chiron_up("--nodes=1", "--gpus=1", directory=tmp_path) as up:
        await up.ready()

        os.kill(one_process(up, "services.global_controller"), signal.SIGKILL)

        assert await up.end() == 1
        assert up.processes() == {}

    assert any(line.startswith("error: controller ended with status -9") for line in up.lines)


async def test_a_killed_agent_is_started_again_and_adopts_its_worker(tmp_path: Path) -> None:
    async with chiron_up("--nodes=1", "--gpus=1", directory=tmp_path) as up:
        await up.ready()
        worker = one_process(up, "services.worker")
        before = (await chiron("status", "--json", f"--controller={up.controller}")).json()

        os.kill(one_process(up, "services.local_agent"), signal.SIGKILL)
        await up.line(r"node-0 ended with status -9; started again as pid \d+")

        async def node_is_back() -> bool:
            status = (await chiron("status", "--json", f"--controller={up.controller}")).json()
            (instance,) = status["instances"]
            same = instance["incarnation"] == before["instances"][0]["incarnation"]
            return bool(status["nodes"][0]["live"] and same and instance["state"].endswith("READY"))

        await eventually(node_is_back)
        answer = await chiron("generate", "toy", "hi", "--max-tokens=4", f"--router={up.router}")
        assert (answer.status, answer.stderr) == (0, "")
        assert one_process(up, "services.worker") == worker

        up.process.send_signal(signal.SIGINT)
        assert await up.end() == 0
        assert up.processes() == {}


async def test_a_killed_router_is_started_again_at_its_address(tmp_path: Path) -> None:
    async with chiron_up("--nodes=1", "--gpus=1", directory=tmp_path) as up:
        await up.ready()

        os.kill(one_process(up, "services.router"), signal.SIGKILL)
        await up.line(r"router-0 ended with status -9; started again")

        answer = await chiron("generate", "toy", "hi", "--max-tokens=4", f"--router={up.router}")
        assert (answer.status, answer.stderr) == (0, "")


async def test_a_killed_up_takes_its_cluster_along(tmp_path: Path) -> None:
    async with chiron_up("--nodes=1", "--gpus=1", directory=tmp_path) as up:
        await up.ready()
        assert len(up.processes()) == 6

        up.process.kill()

        await eventually(lambda: not up.processes(), what="services and worker end after chiron up")


async def test_a_killed_up_takes_the_workers_of_a_dead_agent_along(tmp_path: Path) -> None:
    async with chiron_up("--nodes=1", "--gpus=1", directory=tmp_path) as up:
        await up.ready()
        agent = one_process(up, "services.local_agent")
        up.process.send_signal(signal.SIGSTOP)
        os.kill(agent, signal.SIGKILL)

        up.process.kill()

        await eventually(lambda: not up.processes(), within_s=30.0, what="everything ends after chiron up")


async def test_a_model_without_room_says_so_and_up_goes_on(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.wide]\nengine = "sim"\ngpus_per_instance = 4\n[models.toy]\nengine = "sim"\n')

    async with chiron_up(f"--model={models}", "--nodes=2", "--gpus=2", directory=tmp_path / "run") as up:
        await up.ready()
        status = await chiron("status", f"--controller={up.controller}")

    (row,) = [line for line in status.stdout.splitlines() if line.startswith("wide ")]
    assert "0/1" in row
    assert "4 GPUs" in row


async def test_a_time_scale_reaches_the_engine_and_the_slo_defaults(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.toy]\nengine = "sim"\nslo_defaults = { interactive = { ttft_ms = 200 } }\n')

    async with chiron_up(
        f"--model={models}", "--nodes=1", "--time-scale=3", directory=tmp_path / "run"
    ) as up:
        await up.ready()
        listed = await chiron("models", "list", "--json", f"--controller={up.controller}")

    (model,) = listed.json()["models"]
    assert model["spec"]["engine_args"]["time_scale"] == 3
    assert model["spec"]["slo_defaults"]["interactive"]["ttft_ms"] == 600
