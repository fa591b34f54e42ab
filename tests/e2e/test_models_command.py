from __future__ import annotations

from pathlib import Path

from chiron.cluster import LocalCluster
from tests.support.chiron_command import chiron, watch_status

TWO = """
[models.first]
engine = "sim"
[models.second]
engine = "sim"
"""


async def test_models_are_applied_listed_and_deleted(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(TWO)
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path / "run") as cluster:
        controller = f"--controller={cluster.controller_address}"
        applied = await chiron("models", "apply", str(file), controller)
        again = await chiron("models", "apply", str(file), controller)
        await cluster.wait_ready("first", "second")
        listed = await chiron("models", "list", "--json", controller)
        table = await chiron("models", "list", controller)
        deleted = await chiron("models", "delete", "first", controller)
        await cluster.wait_for(lambda seen: [i.model for i in seen.instances] == ["second"])
        missing = await chiron("models", "delete", "first", controller)
        workers = cluster.workers()

    assert applied.stdout == "first: applied (spec version 1)\nsecond: applied (spec version 1)\n"
    assert again.stdout == "first: unchanged (spec version 1)\nsecond: unchanged (spec version 1)\n"
    assert [model["spec"]["name"] for model in listed.json()["models"]] == ["first", "second"]
    assert table.stdout.splitlines()[1].split()[:3] == ["first", "sim", "1/1"]
    assert deleted.stdout == "first: deleted\n"
    assert [worker.model for worker in workers] == ["second"]
    assert missing.status == 1
    assert missing.stderr.count("\n") == 1
    assert "first" in missing.stderr
    assert "second" in missing.stderr


async def test_a_spec_that_the_controller_refuses_names_the_field(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.odd]\nengine = "sim"\nmin_instances = 3\nmax_instances = 2\n')
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path / "run") as cluster:
        refused = await chiron("models", "apply", str(file), f"--controller={cluster.controller_address}")

    assert refused.status == 1
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: model 'odd': ")
    assert "min_instances" in refused.stderr


async def test_of_several_models_the_refused_ones_are_told_from_the_applied_ones(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.first]\nengine = "sim"\n'
        '[models.odd]\nengine = "sim"\nmin_instances = 3\nmax_instances = 2\n'
        '[models.last]\nengine = "sim"\n'
    )
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path / "run") as cluster:
        controller = f"--controller={cluster.controller_address}"
        result = await chiron("models", "apply", str(file), controller)
        listed = await chiron("models", "list", "--json", controller)

    assert result.status == 1
    assert result.stdout == "first: applied (spec version 1)\nlast: applied (spec version 1)\n"
    assert result.stderr.startswith("error: model 'odd': ")
    assert result.stderr.endswith(" (applied: first, last; not applied: odd)\n")
    assert result.stderr.count("\n") == 1
    assert sorted(model["spec"]["name"] for model in listed.json()["models"]) == ["first", "last"]


async def test_one_wrong_key_in_the_last_of_several_files_applies_nothing(tmp_path: Path) -> None:
    good, wrong = tmp_path / "good.toml", tmp_path / "wrong.toml"
    good.write_text(TWO)
    wrong.write_text('[models.odd]\nengine = "sim"\nspeed = 3\n')
    async with LocalCluster(nodes=1, gpus=2, directory=tmp_path / "run") as cluster:
        controller = f"--controller={cluster.controller_address}"
        result = await chiron("models", "apply", str(good), str(wrong), controller)
        listed = await chiron("models", "list", "--json", controller)

    assert (result.status, result.stdout) == (2, "")
    assert f"{wrong} [models.odd]: unknown key 'speed'" in result.stderr
    assert listed.json()["models"] == []


async def test_status_watch_shows_each_change(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.toy]\nengine = "sim"\n')
    async with (
        LocalCluster(nodes=1, gpus=1, directory=tmp_path / "run") as cluster,
        watch_status(cluster.controller_address) as snapshots,
    ):
        assert (await anext(snapshots))["instances"] == []
        await chiron("models", "apply", str(file), f"--controller={cluster.controller_address}")
        states = [""]
        while states[-1] != "INSTANCE_STATE_READY":
            snapshot = await anext(snapshots)
            states += [instance["state"] for instance in snapshot["instances"]]

    assert "INSTANCE_STATE_LOADING" in states
